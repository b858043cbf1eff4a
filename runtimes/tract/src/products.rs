//! Matrix products in the form that tract runs fast.

use densessm_proto::onnx::{AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType};
use tract_onnx::{
    prelude::*,
    tract_hir::internal::{AxisOp, TypedModelPatch},
};

/// Rewrites products with a transposed weight (that of a tied head) as plain ones: tract's product with a transposed
/// weight is many times slower.
///
/// The weight is declared a second time, for [`fold_transposes`].
pub(crate) fn plain_products(graph: &mut GraphProto) {
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        if let Some(weight) = transposed_weight(graph, &node) {
            let name = format!("{}/transposed", node.name);
            let copy = TensorProto { name: format!("{name}/weight"), ..weight.clone() };
            let perm = AttributeProto {
                name: "perm".to_owned(),
                r#type: AttributeType::Ints.into(),
                ints: vec![1, 0],
                ..AttributeProto::default()
            };
            nodes.push(NodeProto {
                name: name.clone(),
                op_type: "Transpose".to_owned(),
                input: vec![copy.name.clone()],
                output: vec![name.clone()],
                attribute: vec![perm],
                ..NodeProto::default()
            });
            graph.initializer.push(copy);
            node.input[1] = name;
            node.op_type = "MatMul".to_owned();
            node.attribute.clear();
        }
        nodes.push(node);
    }
    graph.node = nodes;
}

/// Returns the weight of a `Gemm` that only multiplies with its transpose.
fn transposed_weight<'g>(graph: &'g GraphProto, node: &NodeProto) -> Option<&'g TensorProto> {
    let gemm = node.domain.is_empty() && node.op_type == "Gemm" && node.input.len() == 2;
    let only_transposed =
        matches!(&node.attribute[..], [attribute] if attribute.name == "transB" && attribute.i == Some(1));
    let weight = graph.initializer.iter().find(|tensor| Some(&tensor.name) == node.input.get(1));
    weight.filter(|_| gemm && only_transposed)
}

/// Transposes constants once, when the graph is loaded. tract's own pass does not do so where several nodes read a
/// constant, and merges two constants of equal content.
pub(crate) fn fold_transposes(model: &mut TypedModel) -> TractResult<()> {
    let transposed = |model: &TypedModel| -> TractResult<Option<(usize, TValue)>> {
        for node in model.nodes().iter().filter(|node| node.op_is::<AxisOp>()) {
            if let Some(constant) = &model.outlet_fact(node.inputs[0])?.konst
                && let Some(mut values) = node.op.eval_out_of_plan(tvec![constant.clone().into_tvalue()])?
            {
                return Ok(values.pop().map(|value| (node.id, value)));
            }
        }
        Ok(None)
    };
    while let Some((node, value)) = transposed(model)? {
        let mut patch = TypedModelPatch::default();
        let constant = patch.add_const(format!("{}/constant", model.node(node).name), value.into_arc_tensor())?;
        patch.shunt_outside(model, node.into(), constant)?;
        patch.apply(model)?;
    }
    Ok(())
}

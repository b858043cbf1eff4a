//! ONNX's `Cast` with 64-bit integers.
//!
//! Hidden constraint: tract's own converts every integer that is cast to int64 to its symbolic dimension type, which
//! accepts concrete numbers in 32 bits only; a sum of such a value and an int64 then loses its upper half. Here, only
//! values that were symbolic before (a graph's shapes) remain so, and numbers become int64.

use tract_onnx::{
    model::ParsingContext,
    pb::NodeProto,
    tract_hir::{internal::*, tract_core::ops::cast},
};

/// The entry for tract's operator registry.
pub(crate) fn cast(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    Ok((expand(Cast { to: node.get_attr("to")? }), Vec::new()))
}

/// Converts element by element to another type.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct Cast {
    to: DatumType,
}

impl Cast {
    fn target(&self, from: DatumType) -> DatumType {
        if self.to == DatumType::I64 && from == DatumType::TDim { from } else { self.to }
    }
}

impl Expansion for Cast {
    fn name(&self) -> StaticName {
        "Cast".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.given(&inputs[0].datum_type, move |s, from| s.equals(&outputs[0].datum_type, self.target(from)))?;
        s.equals(&outputs[0].rank, &inputs[0].rank)?;
        s.equals(&outputs[0].shape, &inputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let from = model.outlet_fact(inputs[0])?.datum_type;
        model.wire_node(prefix, cast::cast(self.target(from)), inputs)
    }
}

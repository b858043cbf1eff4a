//! A graph whose inner values are outputs, as a plan of its own.

use crate::{
    external,
    graph::{guarded, plan},
    inline::inline,
    kernels,
    tensor::{from_host, runtime, to_host},
};
use densessm_proto::{GraphKind, onnx::ModelProto};
use densessm_session::{Bundle, Error, HostTensor, Probe, expose, inputs};
use prost::Message;
use std::{collections::BTreeMap, fs};
use tract_onnx::{prelude::*, tract_hir::internal::TypedSimplePlan};

struct TractProbe {
    bundle: Bundle,
    kind: GraphKind,
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

/// Loads a graph of a bundle, with those values of `names` that it has as outputs.
///
/// # Errors
/// When tract does not take the graph.
pub fn probe(bundle: &Bundle, kind: GraphKind, names: &[String]) -> Result<Box<dyn Probe>, Error> {
    let path = bundle.graph_path(kind)?;
    let bytes = fs::read(&path).map_err(|error| Error::Io { path: path.clone(), error })?;
    let broken = |problem: String| Error::Bundle { path: path.clone(), problem };
    let mut model = ModelProto::decode(&*bytes).map_err(|error| broken(format!("not an ONNX model: {error}")))?;
    if let Some(graph) = &mut model.graph {
        expose(graph, names);
    }
    inline(&mut model, kernels::known).map_err(|error| broken(error.to_string()))?;
    let Some(graph) = &model.graph else { return Err(broken("the model holds no graph".to_owned())) };
    external::check(graph).map_err(broken)?;
    let inputs = graph.input.iter().map(|input| input.name.clone()).collect();
    let outputs = graph.output.iter().map(|output| output.name.clone()).collect();
    let plan =
        guarded(|| plan(&model, bundle.dir(), &RunOptions::default())).map_err(runtime("looking into a graph"))?;
    Ok(Box::new(TractProbe { bundle: bundle.clone(), kind, plan, inputs, outputs }))
}

impl Probe for TractProbe {
    fn run(&mut self, given: BTreeMap<String, HostTensor>) -> Result<BTreeMap<String, HostTensor>, Error> {
        let given: BTreeMap<_, _> = inputs::complete(&self.bundle, self.kind, given)?.into_iter().collect();
        let missing = |name: &String| Error::Input { name: name.clone(), problem: "missing".to_owned() };
        let inputs = self
            .inputs
            .iter()
            .map(|name| from_host(given.get(name).ok_or_else(|| missing(name))?))
            .collect::<Result<TVec<_>, _>>()?;
        let outputs = guarded(|| self.plan.run(inputs)).map_err(runtime("looking into a graph"))?;
        self.outputs.iter().zip(&outputs).map(|(name, output)| Ok((name.clone(), to_host(output)?))).collect()
    }
}

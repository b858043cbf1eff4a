//! A graph that returns its inner values, as a plan of its own.

use crate::{
    constants::Constants,
    graph::{guarded, plan, read},
    tensor::{from_host, runtime, to_host},
};
use densessm_proto::GraphKind;
use densessm_session::{Bundle, Error, HostTensor, Probe, inputs};
use std::collections::BTreeMap;
use tract_onnx::{prelude::*, tract_hir::internal::TypedSimplePlan};

struct TractProbe {
    bundle: Bundle,
    kind: GraphKind,
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

/// Loads a graph of a bundle with inner values as outputs; see
/// [`Runtime::probe`](densessm_session::Runtime::probe).
pub(crate) fn probe(bundle: &Bundle, kind: GraphKind, names: &[String]) -> Result<Box<dyn Probe>, Error> {
    let mut file = read(bundle, kind, names)?;
    let inputs = file.graph.input.iter().map(|input| input.name.clone()).collect();
    let outputs = file.graph.output.iter().map(|output| output.name.clone()).collect();
    let mut constants = Constants::default();
    constants.widen(bundle, &mut file)?;
    let plan = guarded(|| plan(&file.into_model(), bundle.dir(), &RunOptions::default(), &constants));
    let plan = plan.map_err(runtime("probing a graph"))?;
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
        let outputs = guarded(|| self.plan.run(inputs)).map_err(runtime("probing a graph"))?;
        self.outputs.iter().zip(&outputs).map(|(name, output)| Ok((name.clone(), to_host(output)?))).collect()
    }
}

//! A graph whose inner values are outputs, as a session of its own.

use crate::{
    library,
    model::{host, value},
    session::{failed, providers, usable},
};
use densessm_proto::{GraphKind, onnx::ModelProto};
use densessm_session::{Bundle, Device, Error, HostTensor, Probe, expose, inputs};
use ort::{
    logging::LogLevel,
    session::{Session, SessionInputValue},
};
use prost::Message;
use std::{collections::BTreeMap, fs};

/// Where a model that comes from memory has its weights.
const WEIGHTS: &str = "session.model_external_initializers_file_folder_path";

struct OrtProbe {
    bundle: Bundle,
    kind: GraphKind,
    session: Session,
}

/// Loads a graph of a bundle on a device, with those values of `names` that it has as outputs.
///
/// # Errors
/// When ONNX Runtime or the device cannot be used or does not take the graph.
pub fn probe(bundle: &Bundle, device: Device, kind: GraphKind, names: &[String]) -> Result<Box<dyn Probe>, Error> {
    let loaded = library::loaded()?;
    usable(device)?;
    let path = bundle.graph_path(kind)?;
    let bytes = fs::read(&path).map_err(|error| Error::Io { path: path.clone(), error })?;
    let broken = |problem: String| Error::Bundle { path: path.clone(), problem };
    let mut model = ModelProto::decode(&*bytes).map_err(|error| broken(format!("not an ONNX model: {error}")))?;
    let Some(graph) = &mut model.graph else { return Err(broken("the model holds no graph".to_owned())) };
    expose(graph, names);
    let open = || -> ort::Result<Session> {
        let mut builder = Session::builder(&loaded.environment)?
            .with_log_level(LogLevel::Error)?
            .with_execution_providers(providers(device))?;
        if device == Device::Cpu {
            builder = builder.with_operators(densessm_ort_operators::domain()?)?;
        }
        let mut builder = builder.with_config_entry(WEIGHTS, bundle.dir().to_string_lossy())?;
        builder.commit_from_memory(&model.encode_to_vec())
    };
    let session = open().map_err(failed("looking into a graph"))?;
    Ok(Box::new(OrtProbe { bundle: bundle.clone(), kind, session }))
}

impl Probe for OrtProbe {
    fn run(&mut self, given: BTreeMap<String, HostTensor>) -> Result<BTreeMap<String, HostTensor>, Error> {
        let inputs = inputs::complete(&self.bundle, self.kind, given)?;
        let run = || -> ort::Result<BTreeMap<String, HostTensor>> {
            let inputs = inputs
                .into_iter()
                .map(|(name, tensor)| Ok((name, SessionInputValue::from(value(tensor)?))))
                .collect::<ort::Result<Vec<_>>>()?;
            let outputs = self.session.run(inputs)?;
            outputs.iter().map(|(name, value)| Ok((name.to_owned(), host(&value)?))).collect()
        };
        run().map_err(failed("looking into a graph"))
    }
}

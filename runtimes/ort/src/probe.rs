//! A graph that returns its inner values, as a session of its own.

use crate::{
    device::{providers, usable},
    error::failed,
    graph,
    model::{host, value},
    operators::Operators,
    session::WEIGHTS_FOLDER,
};
use densessm_kernels::cuda;
use densessm_proto::GraphKind;
use densessm_session::{Bundle, Device, Error, HostTensor, Probe, inputs};
use ort::{
    logging::LogLevel,
    session::{Session, SessionInputValue},
};
use prost::Message;
use std::collections::BTreeMap;

struct OrtProbe {
    bundle: Bundle,
    kind: GraphKind,
    session: Session,
}

/// Loads a graph of a bundle with inner values as outputs; see
/// [`Runtime::probe`](densessm_session::Runtime::probe).
pub(crate) fn probe(
    bundle: &Bundle,
    kind: GraphKind,
    device: Device,
    names: &[String],
) -> Result<Box<dyn Probe>, Error> {
    let loaded = usable(device)?;
    let (mut file, _) = graph::read(bundle, graph::entry(bundle, kind, device)?, device)?;
    file.expose(names);
    let model = file.into_model().encode_to_vec();
    let kernels = cuda::Device::open(device.index() as usize).is_ok();
    let open = || -> ort::Result<Session> {
        let builder = Session::builder(&loaded.environment)?
            .with_log_level(LogLevel::Error)?
            .with_execution_providers(providers(device))?;
        let builder = Operators::of(device, kernels).add_to(builder)?;
        let mut builder = builder.with_config_entry(WEIGHTS_FOLDER, bundle.dir().to_string_lossy())?;
        builder.commit_from_memory(&model)
    };
    let session = open().map_err(failed("probing a graph"))?;
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
        run().map_err(failed("probing a graph"))
    }
}

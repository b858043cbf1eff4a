//! ONNX Runtime as one of the runtimes.

use crate::{device, probe, roofline, session};
use densessm_proto::GraphKind;
use densessm_session::{
    Bundle, Device, Error, LoadOptions, Model, Probe, Product, Runtime, RuntimeId, RuntimeInfo, Unusable,
};
use std::time::Duration;

/// ONNX Runtime, found by [`library`](crate::library()) and loaded once for the whole process when it is first used.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrtRuntime;

impl Runtime for OrtRuntime {
    fn id(&self) -> RuntimeId {
        RuntimeId::Ort
    }

    fn availability(&self, device: Device) -> Result<RuntimeInfo, Unusable> {
        device::usable(device).map(|loaded| loaded.info(device))
    }

    fn load(&self, bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
        session::load(bundle, options)
    }

    fn probe(
        &self,
        bundle: &Bundle,
        graph: GraphKind,
        device: Device,
        names: &[String],
    ) -> Result<Box<dyn Probe>, Error> {
        probe::probe(bundle, graph, device, names)
    }

    fn time_product(
        &self,
        product: Product,
        device: Device,
        threads: Option<usize>,
        budget: Duration,
    ) -> Result<Duration, Error> {
        roofline::time_product(product, device, threads, budget)
    }

    fn read_bandwidth(&self, device: Device, budget: Duration) -> Result<Option<f64>, Error> {
        roofline::read_bandwidth(device, budget)
    }
}

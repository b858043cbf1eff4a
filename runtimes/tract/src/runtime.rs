//! tract as one of the runtimes.

use crate::{model::TractModel, probe, roofline};
use densessm_proto::GraphKind;
use densessm_session::{
    Bundle, Device, Error, LoadOptions, Model, Probe, Product, Runtime, RuntimeId, RuntimeInfo, Unusable,
    UnusableReason, Version,
};
use std::time::Duration;

/// The version of tract that this crate is built on.
pub const VERSION: Version = Version::new(0, 23, 9);

/// tract, which is compiled in and runs on the processor only.
#[derive(Clone, Copy, Debug, Default)]
pub struct TractRuntime;

impl Runtime for TractRuntime {
    fn id(&self) -> RuntimeId {
        RuntimeId::Tract
    }

    fn availability(&self, device: Device) -> Result<RuntimeInfo, Unusable> {
        match device.is_cpu() {
            true => Ok(RuntimeInfo::new(self.id(), VERSION, device)),
            false => Err(Unusable::new(self.id(), device, UnusableReason::CpuOnly)),
        }
    }

    fn load(&self, bundle: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
        options.check()?;
        let info = self.availability(options.device)?;
        Ok(Box::new(TractModel::load(bundle, info, options)?))
    }

    fn probe(
        &self,
        bundle: &Bundle,
        graph: GraphKind,
        device: Device,
        names: &[String],
    ) -> Result<Box<dyn Probe>, Error> {
        self.availability(device)?;
        probe::probe(bundle, graph, names)
    }

    fn time_product(
        &self,
        product: Product,
        device: Device,
        threads: Option<usize>,
        budget: Duration,
    ) -> Result<Duration, Error> {
        self.availability(device)?;
        roofline::time_product(product, threads, budget)
    }

    /// Returns 1: tract's default executor is the calling thread.
    fn default_threads(&self) -> usize {
        1
    }
}

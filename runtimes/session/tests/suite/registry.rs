//! Choosing a runtime.

use densessm_proto::GraphKind;
use densessm_session::{
    Bundle, Choice, Device, Error, LoadOptions, Model, Probe, Product, Registry, Runtime, RuntimeId, RuntimeInfo,
    Unusable, UnusableReason, Version,
};
use std::time::Duration;

/// A runtime that can be used on one device and loads nothing.
struct Only {
    name: &'static str,
    device: Device,
}

impl Runtime for Only {
    fn id(&self) -> RuntimeId {
        RuntimeId::Other(self.name)
    }

    fn availability(&self, device: Device) -> Result<RuntimeInfo, Unusable> {
        match device == self.device {
            true => Ok(RuntimeInfo::new(self.id(), Version::new(1, 2, 3), device)),
            false => Err(Unusable::new(self.id(), device, UnusableReason::UnknownProvider)),
        }
    }

    fn load(&self, _: &Bundle, options: &LoadOptions) -> Result<Box<dyn Model>, Error> {
        Err(Unusable::new(self.id(), options.device, UnusableReason::NotCompiled).into())
    }

    fn probe(&self, _: &Bundle, _: GraphKind, device: Device, _: &[String]) -> Result<Box<dyn Probe>, Error> {
        Err(Unusable::new(self.id(), device, UnusableReason::NotCompiled).into())
    }

    fn time_product(&self, _: Product, _: Device, _: Option<usize>, budget: Duration) -> Result<Duration, Error> {
        Ok(budget)
    }
}

const REGISTRY: Registry = Registry::new(&[
    &Only { name: "gpu", device: Device::CUDA },
    &Only { name: "first", device: Device::CPU },
    &Only { name: "second", device: Device::CPU },
]);

#[test]
fn auto_takes_the_first_runtime_that_can_be_used_on_the_device() {
    for (device, name) in [(Device::CPU, "first"), (Device::CUDA, "gpu")] {
        let runtime = REGISTRY.choose(Choice::Auto, device).unwrap();
        let info = runtime.availability(device).unwrap();
        assert_eq!((runtime.id().name(), Choice::of(&info).name()), (name, name));
    }
}

#[test]
fn auto_states_why_each_runtime_cannot_be_used() {
    let error = REGISTRY.choose(Choice::Auto, Device::cuda(1)).err().unwrap();
    let Error::NoRuntime { device, tried } = &error else { panic!("{error}") };
    assert_eq!((*device, tried.len()), (Device::cuda(1), 3));
    let text = error.to_string();
    assert!(text.starts_with("cuda:1: no runtime can be used: gpu on cuda:1: "), "{text}");
    assert!(text.contains("; second on cuda:1: "), "{text}");
}

#[test]
fn without_any_runtime_auto_names_the_cargo_features() {
    let error = Registry::new(&[]).choose(Choice::Auto, Device::CPU).err().unwrap().to_string();
    assert!(error.contains("this build contains none") && error.contains("`ort` or `tract`"), "{error}");
}

#[test]
fn a_runtime_that_is_named_is_taken_or_the_error_says_that_it_is_not_in_the_build() {
    let named = |choice| REGISTRY.choose(choice, Device::CUDA);
    assert_eq!(named(Choice::Other("second")).ok().unwrap().id().name(), "second");
    let Err(Error::Unusable(unusable)) = named(Choice::Tract) else { panic!("tract is not in this registry") };
    assert_eq!((unusable.runtime, unusable.reason), (RuntimeId::Tract, UnusableReason::NotCompiled));
}

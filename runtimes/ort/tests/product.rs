//! The product that bench times.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use densessm_ort::OrtRuntime;
use densessm_proto::DType;
use densessm_session::{Device, Product, Runtime};
use std::time::Duration;

#[test]
fn a_product_is_timed_in_fp32_and_in_half_precision() {
    for dtype in [DType::F32, DType::F16] {
        let product = Product::new(2, 8, 4).with_dtype(dtype);
        let time = OrtRuntime.time_product(product, Device::CPU, Some(1), Duration::ZERO).unwrap();
        assert!(time > Duration::ZERO, "{dtype}");
    }
}

#[test]
fn the_bandwidth_of_the_processor_is_not_measured_by_the_runtime() {
    assert_eq!(OrtRuntime.read_bandwidth(Device::CPU, Duration::ZERO).unwrap(), None);
}

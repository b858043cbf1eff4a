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

/// Prints the rates of the first GPU; nothing is measured where there is none.
#[test]
fn the_first_gpu_reads_and_multiplies() {
    if let Err(unusable) = OrtRuntime.availability(Device::CUDA) {
        return println!("skipped: {unusable}");
    }
    let budget = Duration::from_millis(300);
    let read = OrtRuntime.read_bandwidth(Device::CUDA, budget).unwrap();
    println!("reads: {:.0} GB/s", read.unwrap_or(0.0) / 1e9);
    let row = Product::new(1, 16_384, 16_384);
    let time = OrtRuntime.time_product(row, Device::CUDA, None, budget).unwrap();
    println!("product of one row: {:.0} GB/s", row.weight_bytes() as f64 / time.as_secs_f64() / 1e9);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let product = Product::new(8192, 4096, 8192).with_dtype(dtype);
        let time = OrtRuntime.time_product(product, Device::CUDA, None, budget).unwrap();
        println!("products in {dtype}: {:.1} TFLOP/s", product.flops() as f64 / time.as_secs_f64() / 1e12);
    }
}

//! The peak rate of tract: a single matrix product, timed as a plan of its own.

use crate::{
    constants::Constants,
    graph,
    model::executor,
    tensor::{place, runtime},
};
use densessm_proto::{DType, onnx::ModelProto};
use densessm_session::{Error, Product, min_time};
use prost::Message;
use std::{path::Path, time::Duration};
use tract_onnx::prelude::*;

/// Times a product; see [`Runtime::time_product`](densessm_session::Runtime::time_product).
pub(crate) fn time_product(product: Product, threads: Option<usize>, budget: Duration) -> Result<Duration, Error> {
    if product.dtype != DType::F32 {
        let problem = format!("expected fp32, got {}", product.dtype);
        return Err(Error::Input { name: "product".to_owned(), problem });
    }
    let options = RunOptions { executor: executor(threads)?, ..RunOptions::default() };
    let input = place(&[product.rows, product.inner], &product.input())?;
    let time = || -> TractResult<Duration> {
        let model = ModelProto::decode(&*product.model_bytes())?;
        let plan = graph::plan(&model, Path::new("."), &options, &Constants::default())?;
        min_time(budget, || plan.run(tvec![input.clone()]).map(drop))
    };
    time().map_err(runtime("tract: timing a matrix product"))
}

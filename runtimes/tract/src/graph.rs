//! One graph of a bundle as an optimized plan.

use crate::{
    cast::cast,
    constants::Constants,
    inline::inline,
    kernels,
    products::{fold_transposes, plain_products},
    tensor::runtime,
};
use densessm_proto::{GraphKind, StateTensor, TensorEntry, onnx::ModelProto, states};
use densessm_session::{Bundle, Error, onnx::OnnxFile};
use prost::Message;
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use tract_onnx::{
    model::ParseResult, pb, prelude::*, tract_core::optim::Optimizer, tract_hir::internal::TypedSimplePlan,
};

/// The meaning of one of a graph's inputs or outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// The tokens of the call.
    Tokens,
    /// Valid tokens of each row.
    Lengths,
    /// Tokens consumed.
    Consumed,
    /// The scores.
    Logits,
    /// The state at this index of the layout.
    State(usize),
}

/// A graph ready to run.
pub(crate) struct Graph {
    kind: GraphKind,
    plan: Arc<TypedSimplePlan>,
    /// The meaning of each input, in the graph's order.
    pub(crate) inputs: Vec<Slot>,
    /// The meaning of each output, in the graph's order.
    pub(crate) outputs: Vec<Slot>,
}

impl Graph {
    /// Reads and optimizes a graph of a bundle, with constants that its other graph may have read.
    pub(crate) fn load(
        bundle: &Bundle,
        kind: GraphKind,
        options: &RunOptions,
        constants: &mut Constants,
    ) -> Result<Self, Error> {
        let mut file = read(bundle, kind, &[])?;
        let layout = bundle.states();
        let entry = bundle.manifest().graph(kind);
        let (inputs, outputs) = entry.map_or((&[][..], &[][..]), |entry| (&entry.inputs, &entry.outputs));
        let broken = |problem: String| file.broken(problem);
        let inputs =
            slots(inputs, file.graph.input.iter().map(|input| input.name.as_str()), &layout).map_err(broken)?;
        let outputs =
            slots(outputs, file.graph.output.iter().map(|output| output.name.as_str()), &layout).map_err(broken)?;
        let what = file.path.display().to_string();
        constants.widen(bundle, &mut file)?;
        let plan = guarded(|| plan(&file.into_model(), bundle.dir(), options, constants)).map_err(runtime(what))?;
        Ok(Self { kind, plan, inputs, outputs })
    }

    /// Runs the graph on its inputs in order.
    ///
    /// Each call is a run of its own: a run kept from the previous call would keep the states of its scans.
    pub(crate) fn run(&self, inputs: TVec<TValue>) -> Result<TVec<TValue>, Error> {
        guarded(|| self.plan.run(inputs)).map_err(runtime(format!("running the {} graph", self.kind)))
    }
}

/// Reads a graph of a bundle, makes outputs of those values of `names` that it has, and replaces its functions.
pub(crate) fn read(bundle: &Bundle, kind: GraphKind, names: &[String]) -> Result<OnnxFile, Error> {
    let mut file = OnnxFile::of_bundle(bundle, kind)?;
    file.expose(names);
    let (path, bytes) = (file.path.clone(), file.bytes);
    let mut model = file.into_model();
    let broken = |problem: String| Error::Bundle { path: path.clone(), problem };
    inline(&mut model, kernels::known).map_err(|error| broken(error.to_string()))?;
    let graph = model.graph.take().ok_or_else(|| broken("the model contains no graph".to_owned()))?;
    Ok(OnnxFile { path, bytes, model, graph })
}

/// Returns what the values of a graph stand for, after checking that they are those of the manifest.
fn slots<'a>(
    entries: &[TensorEntry],
    names: impl Iterator<Item = &'a str>,
    layout: &[StateTensor],
) -> Result<Vec<Slot>, String> {
    let names: Vec<&str> = names.collect();
    let expected: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    if names != expected {
        return Err(format!("expected inputs or outputs {expected:?} as the manifest says, got {names:?}"));
    }
    let slot = |name: &str| match name {
        states::INPUT_IDS => Some(Slot::Tokens),
        states::SEQUENCE_LENGTHS => Some(Slot::Lengths),
        states::PAST_LENGTH | states::PRESENT_LENGTH => Some(Slot::Consumed),
        states::LOGITS => Some(Slot::Logits),
        _ => layout.iter().position(|state| state.past == name || state.present == name).map(Slot::State),
    };
    names
        .iter()
        .map(|name| slot(name).ok_or_else(|| format!("no model of this family has a tensor `{name}`")))
        .collect()
}

/// Returns the model as tract runs it, with `batch` and `sequence` as symbols.
pub(crate) fn plan(
    model: &ModelProto,
    dir: &Path,
    options: &RunOptions,
    constants: &Constants,
) -> TractResult<Arc<TypedSimplePlan>> {
    let mut model = model.clone();
    if let Some(graph) = &mut model.graph {
        plain_products(graph);
    }
    let mut onnx = tract_onnx::onnx();
    onnx.op_register.insert("Cast", cast);
    kernels::register(&mut onnx);
    let model = pb::ModelProto::decode(&*model.encode_to_vec())?;
    let dir = dir.to_str().ok_or_else(|| TractError::msg("tract takes only folders whose names are UTF-8"))?;
    let ParseResult { model, unresolved_inputs, .. } = onnx.parse(&model, Some(dir))?;
    if let Some(name) = unresolved_inputs.first() {
        return Err(TractError::msg(format!("a node reads `{name}`, which no node produces")));
    }
    let mut model = model.into_typed()?;
    constants.place(&mut model)?;
    fold_transposes(&mut model)?;
    // The pass that moves axes does not terminate where scans run along an axis other than the first: it swaps the axes
    // of the tensors between two scans back and forth.
    let mut declutter = Optimizer::declutter();
    declutter.passes.retain(|pass| format!("{pass:?}") != "ChangeAxes");
    declutter.optimize(&mut model)?;
    model.optimize()?;
    model.into_runnable_with_options(options)
}

/// Calls tract and converts its panics, which unusual graphs cause, to errors.
pub(crate) fn guarded<T>(run: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        Err(TractError::msg(format!("tract panicked: {}", message.unwrap_or("without a message"))))
    })
}

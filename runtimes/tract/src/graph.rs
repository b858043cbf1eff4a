//! One graph of a bundle as an optimised plan.

use crate::{
    cast::cast,
    external,
    inline::inline,
    kernels,
    products::{fold_transposes, plain_products},
    tensor::runtime,
};
use densessm_proto::{GraphKind, StateTensor, TensorEntry, onnx::ModelProto, states};
use densessm_session::{Bundle, Error};
use prost::Message;
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};
use tract_onnx::{
    model::ParseResult, pb, prelude::*, tract_core::optim::Optimizer, tract_hir::internal::TypedSimplePlan,
};

/// What one of a graph's inputs takes, or one of its outputs gives.
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
    /// The state of this place in the layout.
    State(usize),
}

/// A graph ready to run.
pub(crate) struct Graph {
    kind: GraphKind,
    plan: Arc<TypedSimplePlan>,
    /// What each input takes, in the graph's order.
    pub(crate) inputs: Vec<Slot>,
    /// What each output gives, in the graph's order.
    pub(crate) outputs: Vec<Slot>,
}

impl Graph {
    /// Reads and optimises a graph of a bundle.
    pub(crate) fn load(bundle: &Bundle, kind: GraphKind, options: &RunOptions) -> Result<Self, Error> {
        let path = bundle.graph_path(kind)?;
        let broken = |problem: String| Error::Bundle { path: path.clone(), problem };
        let bytes = fs::read(&path).map_err(|error| Error::Io { path: path.clone(), error })?;
        let mut model = ModelProto::decode(&*bytes).map_err(|error| broken(format!("not an ONNX model: {error}")))?;
        inline(&mut model, kernels::known).map_err(|error| broken(error.to_string()))?;
        let Some(graph) = &model.graph else { return Err(broken("the model holds no graph".to_owned())) };
        external::check(graph).map_err(broken)?;

        let layout = bundle.states();
        let entry = bundle.manifest().graph(kind);
        let (inputs, outputs) = entry.map_or((&[][..], &[][..]), |entry| (&entry.inputs, &entry.outputs));
        let inputs = slots(inputs, graph.input.iter().map(|input| input.name.as_str()), &layout).map_err(broken)?;
        let outputs =
            slots(outputs, graph.output.iter().map(|output| output.name.as_str()), &layout).map_err(broken)?;

        let plan = guarded(|| plan(&model, bundle.dir(), options)).map_err(runtime(path.display().to_string()))?;
        Ok(Self { kind, plan, inputs, outputs })
    }

    /// Runs the graph on its inputs in order.
    ///
    /// Each call is a run of its own: a run kept from the last call would hold on to the states of its scans.
    pub(crate) fn run(&self, inputs: TVec<TValue>) -> Result<TVec<TValue>, Error> {
        guarded(|| self.plan.run(inputs)).map_err(runtime(format!("running the {} graph", self.kind)))
    }
}

/// What the values of a graph stand for, once they are found to be those of the manifest.
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

/// The model as tract runs it, `batch` and `sequence` being symbols.
pub(crate) fn plan(model: &ModelProto, dir: &Path, options: &RunOptions) -> TractResult<Arc<TypedSimplePlan>> {
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
        return Err(TractError::msg(format!("a node reads `{name}`, which nothing makes")));
    }
    let mut model = model.into_typed()?;
    fold_transposes(&mut model)?;
    // The pass that moves axes never ends where scans run along an axis other than the first: it swaps the axes of
    // the tensors between two scans to and fro.
    let mut declutter = Optimizer::declutter();
    declutter.passes.retain(|pass| format!("{pass:?}") != "ChangeAxes");
    declutter.optimize(&mut model)?;
    model.optimize()?;
    model.into_runnable_with_options(options)
}

/// Runs tract, whose panics on a graph it did not foresee become errors.
pub(crate) fn guarded<T>(run: impl FnOnce() -> TractResult<T>) -> TractResult<T> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
        Err(TractError::msg(format!("tract panicked: {}", words.unwrap_or("no words"))))
    })
}

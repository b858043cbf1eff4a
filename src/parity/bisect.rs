//! The first value inside a graph that differs from the reference, and the errors of all layers' outputs.

use super::{
    Error, ErrorCurve,
    inspect::{Comparison, Inspection},
    measure::ErrorPoint,
};
use crate::{
    Bundle, Device,
    proto::{GraphKind, ProbeLayout},
    runtime,
};
use densessm_reference::Reference;
use serde::Serialize;
use std::{collections::BTreeMap, ops::ControlFlow};

/// The first value inside a graph, in the order of computation, that is out of tolerance.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Mismatch {
    /// The runtime.
    pub runtime: String,
    /// The graph.
    pub graph: GraphKind,
    /// The layer that computes the value, from 0; none for what precedes and follows the layers.
    pub layer: Option<usize>,
    /// The module of the checkpoint whose output the value is, or the name of the state or output.
    pub tensor: String,
    /// Whether the value is wrong only in a row that is shorter than its batch.
    pub padded: bool,
    /// The largest absolute error.
    pub max_error: f64,
    /// The largest absolute error allowed.
    pub tolerance: f64,
}

/// Finds the first mismatch in each graph of a bundle.
pub(super) fn bisect(
    bundle: &Bundle,
    reference: &Reference,
    tokens: &[i64],
    choice: runtime::Choice,
    device: Device,
) -> Result<Vec<Mismatch>, Error> {
    let mut all = Vec::new();
    for kind in graphs(bundle) {
        Inspection::load(bundle, reference, tokens, (choice, device), kind, |_| true)?.run(&mut |comparison| {
            // What is not a number is within no tolerance.
            if comparison.point.fraction() <= 1.0 {
                return ControlFlow::Continue(());
            }
            all.push(mismatch(choice, kind, comparison));
            ControlFlow::Break(())
        })?;
    }
    Ok(all)
}

fn mismatch(choice: runtime::Choice, graph: GraphKind, comparison: &Comparison<'_>) -> Mismatch {
    let Comparison { probe, padded, point } = comparison;
    let tensor = if let ProbeLayout::State { .. } = probe.layout { &probe.value } else { &probe.name };
    Mismatch {
        runtime: choice.name().to_owned(),
        graph,
        layer: probe.layer,
        tensor: tensor.clone(),
        padded: *padded,
        max_error: point.max_error,
        tolerance: point.tolerance,
    }
}

/// Measures the errors of every layer's output, a curve for each graph of a bundle.
pub(super) fn by_layer(
    bundle: &Bundle,
    reference: &Reference,
    tokens: &[i64],
    choice: runtime::Choice,
    device: Device,
) -> Result<Vec<ErrorCurve>, Error> {
    let mut curves = Vec::new();
    for graph in graphs(bundle) {
        let mut points: BTreeMap<usize, ErrorPoint> = BTreeMap::new();
        let mut inspection =
            Inspection::load(bundle, reference, tokens, (choice, device), graph, |probe| probe.is_layer_output)?;
        inspection.run(&mut |Comparison { point, .. }| {
            let worst = points.entry(point.at).or_insert(*point);
            if point.fraction() > worst.fraction() {
                *worst = *point;
            }
            ControlFlow::Continue(())
        })?;
        let points = points.into_values().collect();
        curves.push(ErrorCurve { runtime: choice.name().to_owned(), graph, points });
    }
    Ok(curves)
}

fn graphs(bundle: &Bundle) -> impl Iterator<Item = GraphKind> {
    [GraphKind::Parallel, GraphKind::Recurrent].into_iter().filter(|&kind| bundle.graph_path(kind).is_ok())
}

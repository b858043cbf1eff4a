//! `densessm inspect`

use crate::terminal::outln;
use crate::{cli, terminal};
use anyhow::Result;
use densessm::{
    Bundle,
    inspect::{self, GraphReport, TokenCost},
    proto::{GraphEntry, Manifest, operators::Schema},
};
use serde_json::{Value, json};

pub(crate) fn run(arguments: &cli::Inspect) -> Result<()> {
    if arguments.path.is_dir() {
        let bundle = Bundle::open(&arguments.path)?;
        let entries = bundle.manifest().graphs.iter();
        let graphs =
            entries.map(|entry| Ok(inspect::graph(&bundle.entry_path(entry)?)?)).collect::<Result<Vec<_>>>()?;
        let cost = inspect::token_cost(&bundle)?;
        if arguments.json {
            let graphs: Vec<Value> = graphs.iter().map(graph_json).collect();
            outln!("{:#}", json!({ "manifest": bundle.manifest(), "graphs": graphs, "token": cost }));
            return Ok(());
        }
        print_manifest(&arguments.path, bundle.manifest())?;
        print_cost(cost)?;
        return graphs.iter().try_for_each(print_graph);
    }
    let graph = inspect::graph(&arguments.path)?;
    if arguments.json {
        outln!("{:#}", graph_json(&graph));
    } else {
        print_graph(&graph)?;
    }
    Ok(())
}

fn print_manifest(path: &std::path::Path, manifest: &Manifest) -> Result<()> {
    outln!(
        "{}: {} weights, opset {}, {} lowering",
        path.display(),
        manifest.precision,
        manifest.opset,
        manifest.lowering
    );
    for GraphEntry { file, activations, .. } in &manifest.graphs {
        outln!("  {file:<22} {activations} activations");
    }
    let Value::Object(fields) = serde_json::to_value(&manifest.architecture)? else { return Ok(()) };
    for (name, value) in fields {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        outln!("  {name:<22} {value}");
    }
    Ok(())
}

fn print_cost(cost: TokenCost) -> Result<()> {
    let flops = |count: u64| terminal::scaled(count as f64, "FLOP");
    outln!("cost of one token of one sequence, in the recurrent graph");
    outln!("  projections            {}", flops(cost.projection_flops));
    outln!("  recurrence             {}", flops(cost.recurrence_flops));
    outln!("  weights read           {}", terminal::bytes(cost.weight_bytes));
    outln!("  states read + written  {}", terminal::bytes(cost.state_bytes));
    Ok(())
}

fn print_graph(graph: &GraphReport) -> Result<()> {
    outln!("{} ({})", graph.path.display(), terminal::bytes(graph.file_bytes));
    let sets: Vec<String> = graph.operator_sets.iter().map(|(domain, version)| format!("{domain} {version}")).collect();
    outln!("  operator sets          {}", sets.join(", "));
    for (dtype, (count, bytes)) in &graph.weights {
        outln!("  {dtype:<22} {} in {count} initializers", terminal::bytes(*bytes));
    }
    for (name, nodes) in &graph.functions {
        outln!("  function {name}: {nodes} nodes");
    }
    for schema in &graph.schemas {
        outln!("  operator {schema}");
        outln!("    {}", schema.description);
    }
    for (what, lines) in [("input", &graph.inputs), ("output", &graph.outputs)] {
        for line in lines {
            outln!("  {what:<6} {line}");
        }
    }
    let mut operators: Vec<_> = graph.operators.iter().collect();
    operators.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
    outln!("  {} nodes", operators.iter().map(|(_, count)| **count).sum::<usize>());
    for (name, count) in operators {
        outln!("  {count:>6} {name}");
    }
    Ok(())
}

fn graph_json(graph: &GraphReport) -> Value {
    let weights: serde_json::Map<String, Value> = graph
        .weights
        .iter()
        .map(|(dtype, (count, bytes))| (dtype.clone(), json!({ "initializers": count, "bytes": bytes })))
        .collect();
    let functions: Vec<Value> =
        graph.functions.iter().map(|(name, nodes)| json!({ "name": name, "nodes": nodes })).collect();
    let described = |schema: &&Schema| json!({ "name": schema.name, "call": schema.to_string(), "description": schema.description });
    let schemas: Vec<Value> = graph.schemas.iter().map(described).collect();
    json!({
        "path": graph.path, "file_bytes": graph.file_bytes, "operator_sets": graph.operator_sets,
        "operators": graph.operators, "functions": functions, "schemas": schemas, "inputs": graph.inputs, "outputs": graph.outputs,
        "weights": weights, "projection_flops": graph.projection_flops,
    })
}

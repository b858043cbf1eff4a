//! The text form: one line per node, for goldens, for diffs, and for reading.

use crate::{
    Model,
    arena::{BodyId, MAIN, Node, ValueId},
};
use std::fmt;

/// Writes one line per weight, input, constant, node and output; functions follow the graph, sub-graphs are indented.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "graph {} (opset {})", self.name, self.opset)?;
        for weight in self.weights() {
            for initializer in &weight.initializers {
                let (name, dtype, shape) = (&initializer.name, initializer.dtype, &initializer.shape);
                write!(f, "  weight {name}: {dtype}{shape:?} {:?}", weight.prepare)?;
                if *name != weight.name {
                    write!(f, " of {}", weight.name)?;
                }
                writeln!(f)?;
            }
        }
        self.body(f, MAIN, 1)?;
        for function in &self.arena.functions {
            let overload = if function.overload.is_empty() { String::new() } else { format!(" {}", function.overload) };
            write!(f, "function {}.{}{overload}", function.domain, function.operator)?;
            for (name, value) in &function.attributes {
                write!(f, " {name}={value}")?;
            }
            writeln!(f)?;
            self.body(f, function.body, 1)?;
        }
        Ok(())
    }
}

impl Model {
    fn body(&self, f: &mut fmt::Formatter<'_>, body: BodyId, depth: usize) -> fmt::Result {
        let indent = "  ".repeat(depth);
        let body = &self.arena.bodies[body];
        for &id in &body.inputs {
            writeln!(f, "{indent}input {}", self.typed(id))?;
        }
        for (id, literal) in &body.literals {
            writeln!(f, "{indent}{} = {}", self.typed(*id), literal.text())?;
        }
        for node in &body.nodes {
            self.node(f, node, depth)?;
        }
        for &id in &body.outputs {
            writeln!(f, "{indent}output {}", self.typed(id))?;
        }
        Ok(())
    }

    fn node(&self, f: &mut fmt::Formatter<'_>, node: &Node, depth: usize) -> fmt::Result {
        let outputs: Vec<String> = node.outputs.iter().map(|&id| self.typed(id)).collect();
        let name = |slot: &Option<ValueId>| slot.map_or("_", |id| self.arena.values[id].name.as_str());
        let inputs: Vec<&str> = node.inputs.iter().map(name).collect();
        let (dot, overload) = (if node.domain.is_empty() { "" } else { "." }, &node.overload);
        let (open, close) = if overload.is_empty() { ("", "") } else { ("<", ">") };
        write!(f, "{}{} = ", "  ".repeat(depth), outputs.join(", "))?;
        write!(f, "{}{dot}{}{open}{overload}{close}({})", node.domain, node.op, inputs.join(", "))?;
        for (name, value) in &node.attributes {
            write!(f, " {name}={value}")?;
        }
        writeln!(f)?;
        node.sub_graph.map_or(Ok(()), |sub_graph| self.body(f, sub_graph, depth + 1))
    }

    fn typed(&self, id: ValueId) -> String {
        let value = &self.arena.values[id];
        format!("{}: {}", value.name, value.tensor)
    }
}

//! Which kernels a runtime has chosen for the nodes of this project's operators.

use densessm_proto::GraphKind;
use serde::Serialize;
use std::fmt;

/// How a runtime executes the nodes of a graph that call this project's operators (domain `ai.densessm`).
///
/// Every such node is counted once. A graph of standard operators only (`--lowering inline`) has none.
///
/// ```
/// use densessm_proto::GraphKind;
/// use densessm_session::GraphPlacement;
///
/// let placement = GraphPlacement::new(GraphKind::Recurrent).with_gpu_kernels(95).with_functions(1);
/// assert_eq!(placement.nodes(), 96);
/// assert_eq!(
///     placement.to_string(),
///     "recurrent graph: of 96 nodes of ai.densessm, 95 run kernels on the GPU, 1 functions of standard operators",
/// );
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct GraphPlacement {
    /// The graph.
    pub graph: GraphKind,
    /// Number of nodes that a kernel of this project for the GPU computes.
    pub gpu_kernels: usize,
    /// Number of nodes that a kernel of this project for the CPU computes.
    pub cpu_kernels: usize,
    /// Number of nodes that run as functions of standard operators, because the runtime has no kernel for them.
    pub functions: usize,
}

impl GraphPlacement {
    /// Returns the placement of a graph without nodes of this project's operators.
    pub const fn new(graph: GraphKind) -> Self {
        Self { graph, gpu_kernels: 0, cpu_kernels: 0, functions: 0 }
    }

    /// Sets the number of nodes that kernels for the GPU compute.
    pub const fn with_gpu_kernels(mut self, nodes: usize) -> Self {
        self.gpu_kernels = nodes;
        self
    }

    /// Sets the number of nodes that kernels for the CPU compute.
    pub const fn with_cpu_kernels(mut self, nodes: usize) -> Self {
        self.cpu_kernels = nodes;
        self
    }

    /// Sets the number of nodes that run as functions of standard operators.
    pub const fn with_functions(mut self, nodes: usize) -> Self {
        self.functions = nodes;
        self
    }

    /// Returns the number of nodes of this project's operators.
    pub const fn nodes(&self) -> usize {
        self.gpu_kernels + self.cpu_kernels + self.functions
    }
}

impl fmt::Display for GraphPlacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            (self.gpu_kernels, "kernels on the GPU"),
            (self.cpu_kernels, "kernels on the CPU"),
            (self.functions, "functions of standard operators"),
        ];
        let mut used = kinds.into_iter().filter(|(nodes, _)| *nodes > 0);
        let (graph, nodes) = (self.graph, self.nodes());
        let Some((first, kind)) = used.next() else { return write!(f, "{graph} graph: standard operators only") };
        if first == nodes {
            return write!(f, "{graph} graph: all {nodes} nodes of ai.densessm run {kind}");
        }
        write!(f, "{graph} graph: of {nodes} nodes of ai.densessm, {first} run {kind}")?;
        used.try_for_each(|(nodes, kind)| write!(f, ", {nodes} {kind}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_names_every_kind_of_execution_that_occurs() {
        let none = GraphPlacement::new(GraphKind::Parallel);
        assert_eq!(none.to_string(), "parallel graph: standard operators only");
        let all = none.with_gpu_kernels(3);
        assert_eq!(all.to_string(), "parallel graph: all 3 nodes of ai.densessm run kernels on the GPU");
        let mixed = all.with_cpu_kernels(2).with_functions(1);
        let expected = "parallel graph: of 6 nodes of ai.densessm, 3 run kernels on the GPU, 2 kernels on the CPU, \
                        1 functions of standard operators";
        assert_eq!((mixed.to_string().as_str(), mixed.nodes()), (expected, 6));
    }
}

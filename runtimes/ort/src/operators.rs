//! The operators of a session, and whether it runs them with the kernels of its device.

use densessm_ort_operators::{Placement, domain, domain_with_placement};
use densessm_proto::{GraphKind, operators::DOMAIN};
use densessm_session::{Device, Error, GraphPlacement, Provider, onnx::OnnxFile};
use ort::session::builder::SessionBuilder;
use std::{collections::HashSet, sync::Arc};

/// The kernels that a session is loaded with.
pub(crate) enum Operators {
    /// None: functions of standard operators run.
    None,
    /// Those for the CPU.
    Cpu,
    /// Those for the CPU and for GPUs, and where the session has placed its nodes.
    Cuda(Arc<Placement>),
}

impl Operators {
    /// The kernels for a device; `kernels` is whether those for GPUs can be made here.
    pub(crate) fn of(device: Device, kernels: bool) -> Self {
        match device.provider() {
            Provider::Cpu => Self::Cpu,
            Provider::Cuda if kernels => Self::Cuda(Arc::default()),
            _ => Self::None,
        }
    }

    /// Adds them to a session that is being built.
    pub(crate) fn add_to(&self, builder: SessionBuilder) -> ort::Result<SessionBuilder> {
        Ok(match self {
            Self::None => builder,
            Self::Cpu => builder.with_operators(domain()?)?,
            Self::Cuda(placement) => builder.with_operators(domain_with_placement(Arc::clone(placement))?)?,
        })
    }

    /// Returns how a session that was loaded for a GPU runs the nodes of this project's operators; none on other devices.
    ///
    /// # Errors
    /// Unless `fallback` is allowed: naming the first node that runs on the CPU or as a function of standard operators.
    pub(crate) fn placement(
        &self,
        file: &OnnxFile,
        kind: GraphKind,
        device: Device,
        fallback: bool,
    ) -> Result<Option<GraphPlacement>, Error> {
        if device.provider() != Provider::Cuda {
            return Ok(None);
        }
        let (cpu, cuda) = match self {
            Self::Cuda(placement) => (placement.cpu(), placement.cuda()),
            Self::None | Self::Cpu => (Vec::new(), Vec::new()),
        };
        let nodes: Vec<&str> =
            file.graph.node.iter().filter(|node| node.domain == DOMAIN).map(|node| node.name.as_str()).collect();
        if let Some((node, got)) = misplaced(&nodes, &cpu, &cuda).filter(|_| !fallback) {
            let advice = "use this ONNX Runtime's CPU, another version of it, or allow it \
                          (--allow-operator-fallback, LoadOptions::operator_fallback)";
            let problem = format!("expected its kernel for the GPU to be used, got {got}; {advice}");
            return Err(Error::Runtime { what: format!("{}: node `{node}`", file.path.display()), problem });
        }
        Ok(Some(placed(kind, &nodes, &cpu, &cuda)))
    }
}

/// Counts nodes by what runs them.
fn placed(kind: GraphKind, nodes: &[&str], cpu: &[String], cuda: &[String]) -> GraphPlacement {
    let [on_cpu, on_gpu] = [cpu, cuda].map(|names| names.iter().map(String::as_str).collect::<HashSet<_>>());
    let gpu = nodes.iter().filter(|node| on_gpu.contains(*node)).count();
    let cpu = nodes.iter().filter(|node| on_cpu.contains(*node) && !on_gpu.contains(*node)).count();
    let functions = nodes.len() - gpu - cpu;
    GraphPlacement::new(kind).with_gpu_kernels(gpu).with_cpu_kernels(cpu).with_functions(functions)
}

/// The first node for which there is no kernel for the GPU, and what runs instead.
fn misplaced<'n>(nodes: &[&'n str], cpu: &[String], cuda: &[String]) -> Option<(&'n str, &'static str)> {
    let on_gpu: HashSet<&str> = cuda.iter().map(String::as_str).collect();
    let node = *nodes.iter().find(|node| !on_gpu.contains(*node))?;
    let on_cpu = cpu.iter().any(|name| name == node);
    Some((node, if on_cpu { "the one for the CPU" } else { "its function of standard operators" }))
}

#[cfg(test)]
mod tests {
    use super::{misplaced, placed};
    use densessm_proto::GraphKind;
    use densessm_session::GraphPlacement;

    #[test]
    fn a_node_without_a_kernel_for_the_gpu_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let nodes = ["a", "b", "c"];
        assert_eq!(misplaced(&nodes, &[], &names(&["c", "a", "b"])), None);
        let got = misplaced(&nodes, &names(&["b"]), &names(&["a", "c"]));
        assert_eq!(got, Some(("b", "the one for the CPU")));
        let got = misplaced(&nodes, &[], &names(&["a", "b"]));
        assert_eq!(got, Some(("c", "its function of standard operators")));
    }

    #[test]
    fn every_node_is_counted_once() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let got = placed(GraphKind::Recurrent, &["a", "b", "c", "d"], &names(&["c", "a"]), &names(&["a", "b", "b"]));
        let expected =
            GraphPlacement::new(GraphKind::Recurrent).with_gpu_kernels(2).with_cpu_kernels(1).with_functions(1);
        assert_eq!(got, expected);
    }
}

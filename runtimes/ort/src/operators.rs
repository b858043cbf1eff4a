//! The operators of a session, and whether it runs them with the kernels of its device.

use densessm_ort_operators::{Placement, domain, domain_with_placement};
use densessm_proto::{GraphKind, operators::DOMAIN};
use densessm_session::{Bundle, Device, Error, Provider, onnx::OnnxFile};
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

    /// Checks that a session that was loaded for a GPU has made a kernel for the GPU for each node of this project's
    /// operators.
    ///
    /// # Errors
    /// Naming the first node that runs on the CPU or as a function of standard operators.
    pub(crate) fn check(&self, bundle: &Bundle, kind: GraphKind) -> Result<(), Error> {
        let Self::Cuda(placement) = self else { return Ok(()) };
        let file = OnnxFile::of_bundle(bundle, kind)?;
        let nodes = file.graph.node.iter().filter(|node| node.domain == DOMAIN).map(|node| node.name.as_str());
        misplaced(nodes, &placement.cpu(), &placement.cuda()).map_or(Ok(()), |(node, got)| {
            let advice = "use this ONNX Runtime's CPU, another version of it, or allow it \
                          (LoadOptions::operator_fallback)";
            let problem = format!("expected its kernel for the GPU to be used, got {got}; {advice}");
            Err(Error::Runtime { what: format!("{}: node `{node}`", file.path.display()), problem })
        })
    }
}

/// The first node for which there is no kernel for the GPU, and what runs instead.
fn misplaced<'n>(
    mut nodes: impl Iterator<Item = &'n str>,
    cpu: &[String],
    cuda: &[String],
) -> Option<(&'n str, &'static str)> {
    let on_gpu: HashSet<&str> = cuda.iter().map(String::as_str).collect();
    let node = nodes.find(|node| !on_gpu.contains(node))?;
    let on_cpu = cpu.iter().any(|name| name == node);
    Some((node, if on_cpu { "the one for the CPU" } else { "its function of standard operators" }))
}

#[cfg(test)]
mod tests {
    use super::misplaced;

    #[test]
    fn a_node_without_a_kernel_for_the_gpu_is_named() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let nodes = ["a", "b", "c"];
        assert_eq!(misplaced(nodes.into_iter(), &[], &names(&["c", "a", "b"])), None);
        let got = misplaced(nodes.into_iter(), &names(&["b"]), &names(&["a", "c"]));
        assert_eq!(got, Some(("b", "the one for the CPU")));
        let got = misplaced(nodes.into_iter(), &[], &names(&["a", "b"]));
        assert_eq!(got, Some(("c", "its function of standard operators")));
    }
}

//! The device that a model runs on: an execution provider and the index of the hardware it uses.

use std::{fmt, str::FromStr};

/// A kind of hardware and the library that drives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Provider {
    /// The processor.
    Cpu,
    /// NVIDIA GPUs through CUDA.
    Cuda,
    /// NVIDIA GPUs through TensorRT.
    TensorRt,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Self; 3] = [Self::Cpu, Self::Cuda, Self::TensorRt];

    /// Returns the provider's name on the command line and in reports: `cpu`, `cuda` or `tensorrt`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::TensorRt => "tensorrt",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a model runs: a provider and, on GPUs, which of them.
///
/// The text form is `cpu`, `cuda`, `cuda:1`, `tensorrt` or `tensorrt:1`; the index 0 may be written or left out.
///
/// ```
/// use densessm_session::{Device, Provider};
///
/// let device: Device = "cuda:1".parse()?;
/// assert_eq!((device.provider(), device.index()), (Provider::Cuda, 1));
/// assert_eq!(device.to_string(), "cuda:1");
/// assert_eq!("cuda:0".parse(), Ok(Device::CUDA));
/// assert!("cpu:1".parse::<Device>().is_err());
/// # Ok::<(), densessm_session::ParseDeviceError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    provider: Provider,
    /// Always 0 for the processor.
    index: u32,
}

impl Device {
    /// The processor.
    pub const CPU: Self = Self { provider: Provider::Cpu, index: 0 };
    /// The first GPU, through CUDA.
    pub const CUDA: Self = Self::cuda(0);
    /// The first GPU, through TensorRT.
    pub const TENSORRT: Self = Self::tensorrt(0);

    /// Returns the GPU with this index, through CUDA. CUDA counts from 0 and honours `CUDA_VISIBLE_DEVICES`.
    pub const fn cuda(index: u32) -> Self {
        Self { provider: Provider::Cuda, index }
    }

    /// Returns the GPU with this index, through TensorRT; indices are CUDA's.
    pub const fn tensorrt(index: u32) -> Self {
        Self { provider: Provider::TensorRt, index }
    }

    /// Returns the first device of a provider.
    pub const fn first(provider: Provider) -> Self {
        Self { provider, index: 0 }
    }

    /// Returns the provider.
    pub const fn provider(self) -> Provider {
        self.provider
    }

    /// Returns which of the provider's devices this is; 0 for the processor.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Returns whether this is the processor.
    pub const fn is_cpu(self) -> bool {
        matches!(self.provider, Provider::Cpu)
    }
}

impl Default for Device {
    /// Returns [`Device::CPU`].
    fn default() -> Self {
        Self::CPU
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.index {
            0 => f.pad(self.provider.name()),
            index => f.pad(&format!("{}:{index}", self.provider)),
        }
    }
}

/// An error of parsing a [`Device`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseDeviceError {
    /// The provider is not known.
    #[error("expected cpu, cuda[:N] or tensorrt[:N], got `{0}`")]
    Provider(String),
    /// The index is not a number.
    #[error("expected a device index from 0 up after the colon, got `{0}`")]
    Index(String),
    /// The processor has no index.
    #[error("expected cpu without an index, got `{0}`; the processor is one device")]
    IndexedCpu(String),
}

impl FromStr for Device {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index)),
            None => (text, None),
        };
        let provider = Provider::ALL.into_iter().find(|provider| provider.name() == name);
        let Some(provider) = provider else { return Err(ParseDeviceError::Provider(text.to_owned())) };
        let Some(index) = index else { return Ok(Self::first(provider)) };
        if provider == Provider::Cpu {
            return Err(ParseDeviceError::IndexedCpu(text.to_owned()));
        }
        // Providers take the index as a 32-bit signed integer. A sign is no part of an index.
        let number =
            index.parse().ok().filter(|&number: &u32| i32::try_from(number).is_ok() && !index.starts_with('+'));
        number.map(|index| Self { provider, index }).ok_or_else(|| ParseDeviceError::Index(index.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_displayed_as_it_is_parsed() {
        for device in [Device::CPU, Device::CUDA, Device::cuda(7), Device::TENSORRT, Device::tensorrt(1)] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!(Device::tensorrt(1).to_string(), "tensorrt:1");
        assert_eq!("tensorrt:0".parse(), Ok(Device::TENSORRT));
        assert_eq!(format!("{:<8}|", Device::cuda(1)), "cuda:1  |");
    }

    #[test]
    fn what_names_no_device_is_refused() {
        for text in ["", "gpu", "CUDA", "cuda1", ":1", "cuda :1"] {
            assert_eq!(text.parse::<Device>(), Err(ParseDeviceError::Provider(text.to_owned())));
        }
        for index in ["", "x", "-1", "+1", "1.0", "1:2", "2147483648", "99999999999"] {
            assert_eq!(format!("cuda:{index}").parse::<Device>(), Err(ParseDeviceError::Index(index.to_owned())));
        }
        for text in ["cpu:", "cpu:0", "cpu:1"] {
            assert_eq!(text.parse::<Device>(), Err(ParseDeviceError::IndexedCpu(text.to_owned())));
        }
    }
}

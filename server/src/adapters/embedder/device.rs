//! Where the model runs. Known without libtorch too, so that every build reads the same settings.

use std::fmt;
use std::str::FromStr;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// All GPUs that libtorch sees, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// All GPUs; that there is none is an error.
    AllCuda,
    /// This GPU or none: its absence is an error.
    Cuda(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a device: use auto, cpu, cuda or cuda:N")]
pub struct UnknownDevice(String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::AllCuda),
            _ => text
                .strip_prefix("cuda:")
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| UnknownDevice(text.to_owned())),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::Cpu => out.write_str("cpu"),
            Self::AllCuda => out.write_str("cuda"),
            Self::Cuda(index) => write!(out, "cuda:{index}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for device in [Device::Auto, Device::Cpu, Device::AllCuda, Device::Cuda(0), Device::Cuda(7)]
        {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
    }

    #[test]
    fn what_is_no_device_is_refused_with_the_choices() {
        for text in ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:+1", "cuda:x"] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(error.contains("auto, cpu"), "{error}");
        }
    }
}

//! What is assumed and can be said otherwise on the command line. The rest stands in `model.rs`.

use clap::{Args, ValueEnum};

#[derive(Args, Clone, Debug)]
pub struct Assumptions {
    /// vCPUs of an API server; a smaller one is taken where two of them are enough.
    #[arg(long, default_value_t = 4.0, value_parser = positive)]
    pub vcpus: f64,
    /// Share of its CPUs that a machine is planned to use at the peak.
    #[arg(long, default_value_t = 0.6, value_parser = share)]
    pub utilisation: f64,
    /// Bytes of a document as JSON.
    #[arg(long, default_value_t = 1_000.0, value_parser = positive)]
    pub document_bytes: f64,
    /// vCPUs of a node for Milvus.
    #[arg(long, default_value_t = 16.0, value_parser = positive)]
    pub node_vcpus: f64,
    /// Memory of a node for Milvus, in GiB.
    #[arg(long, default_value_t = 64.0, value_parser = positive)]
    pub node_gib: f64,
    /// Copies of each collection in a cluster of Milvus: `milvus.replicaNumber`.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub copies: u32,
    /// Size of a segment of Milvus, in GiB: `dataCoord.segment.maxSize`.
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    pub segment_gib: f64,
    /// Numbers that the model computes with on CPUs.
    #[arg(long, default_value = "fp32")]
    pub precision: Precision,
    /// Price of a vCPU for an hour. What stands here is an example, in no currency.
    #[arg(long, default_value_t = 0.04, value_parser = positive)]
    pub vcpu_price: f64,
    /// Price of a GiB of memory for an hour; an example, too.
    #[arg(long, default_value_t = 0.005, value_parser = positive)]
    pub gib_price: f64,
    /// Price of a GPU for an hour; an example, too.
    #[arg(long, default_value_t = 2.5, value_parser = positive)]
    pub gpu_price: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    Fp32,
    Bf16,
    Int8,
}

impl Precision {
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Bf16, Self::Int8];

    /// As `embedder.precision` has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("not a number above 0".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match positive(text) {
        Ok(number) if number <= 1.0 => Ok(number),
        _ => Err("not a number above 0 and up to 1".to_owned()),
    }
}

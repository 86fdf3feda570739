//! `[runtime]` and `[compute]`: what scripts and shaders run behind and on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::quote;
use super::read::{ConfigDiagnostics, ConfigTable};
use super::values::ConfigDiagnostic;

/// Longest name of a driver, in bytes.
const DRIVER_BYTES_MAX: usize = 32;

/// Most seconds that a request may take on the GPU: ten minutes.
const GPU_SECONDS_MAX: u32 = 600;

/// `[runtime]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeSection {
    /// The lowest sandbox level of a worker that gets work.
    pub min_sandbox: SandboxLevel,
}

/// How much of the sandbox a worker has to have. Ordered from weak to strong.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxLevel {
    /// A process of its own, whatever else is missing.
    ProcessOnly,
    /// The list of system calls, and no capability. Every kernel that is not built without seccomp can give it.
    #[default]
    Partial,
    /// Every layer of the sandbox.
    Full,
}

impl SandboxLevel {
    /// Every level, the weakest first.
    pub const ALL: [Self; 3] = [Self::ProcessOnly, Self::Partial, Self::Full];

    /// As the document writes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ProcessOnly => "process-only",
            Self::Partial => "partial",
            Self::Full => "full",
        }
    }
}

/// `[compute]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ComputeSection {
    /// The only driver that shaders run on, `none` for no driver; the best adapter where none is named.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-z][a-z0-9-]{0,31}$"))]
    pub driver: Option<String>,
    /// Whether the processor may compute products and hashes whose caller did not ask for it.
    pub host_kernels: bool,
    /// How long a request may take on the GPU before its worker is killed, in seconds. More than 10 are of no use to
    /// scripts: a call into a session has 10 s in all.
    #[schemars(range(min = 1, max = 600))]
    pub gpu_seconds: u32,
}

impl Default for ComputeSection {
    fn default() -> Self {
        Self {
            driver: None,
            host_kernels: true,
            gpu_seconds: 10,
        }
    }
}

pub(super) fn runtime(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> RuntimeSection {
    let min_sandbox = section.key("min_sandbox");
    section.finish(notes);
    let min_sandbox = min_sandbox.and_then(|value| value.parsed(notes, sandbox_level));
    RuntimeSection {
        min_sandbox: min_sandbox.unwrap_or_default(),
    }
}

pub(super) fn compute(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> ComputeSection {
    let standard = ComputeSection::default();
    let driver = section.key("driver");
    let host_kernels = section.key("host_kernels");
    let gpu_seconds = section.key("gpu_seconds");
    section.finish(notes);
    let driver = driver.and_then(|value| value.parsed(notes, driver_name));
    let host_kernels = host_kernels.and_then(|value| value.bool(notes));
    let gpu_seconds = gpu_seconds.and_then(|value| value.number(1..=GPU_SECONDS_MAX, notes));
    ComputeSection {
        driver,
        host_kernels: host_kernels.unwrap_or(standard.host_kernels),
        gpu_seconds: gpu_seconds.unwrap_or(standard.gpu_seconds),
    }
}

fn sandbox_level(text: &str) -> Result<SandboxLevel, ConfigDiagnostic> {
    let mut levels = SandboxLevel::ALL.into_iter();
    levels.find(|level| level.name() == text).ok_or_else(|| {
        ConfigDiagnostic::new(
            format!("{} is no level of a sandbox", quote(text)),
            "write process-only, partial or full".to_owned(),
        )
    })
}

/// The form alone: which drivers there are depends on how the program was built.
fn driver_name(text: &str) -> Result<String, ConfigDiagnostic> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let letter = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
    if letter && text.len() <= DRIVER_BYTES_MAX && text.bytes().all(plain) {
        return Ok(text.to_owned());
    }
    Err(ConfigDiagnostic::new(
        format!("{} is no name of a driver", quote(text)),
        "write one that 'alknet gpu info' lists, like llvmpipe, or none".to_owned(),
    ))
}

//! Secure Boot under an owner's own key: makes the key, puts it into the firmware's variables as
//! the only one, and signs with it. It uses the tools that an owner of a machine has.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::tools;

/// The owner of the keys, in the form of the variables. Any number works.
const OWNER: &str = "6b3a3f0e-8f0c-4d0f-9a53-616c6b6e6574";
/// How long the certificate holds, in days. Firmware does not check it.
const DAYS: &str = "3650";

/// The owner of a machine, who decides what it starts.
#[derive(Clone, Debug)]
pub struct PlatformOwner {
    key: PathBuf,
    certificate: PathBuf,
}

impl PlatformOwner {
    /// Makes a key of this name, and its certificate, in `folder`.
    ///
    /// # Errors
    /// OpenSSL is missing or fails.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let own = Self {
            key: folder.join(format!("{name}.key")),
            certificate: folder.join(format!("{name}.pem")),
        };
        let subject = format!("/CN={name}");
        let mut openssl = Command::new("openssl");
        openssl
            .args(["req", "-x509", "-newkey", "rsa:2048", "-sha256", "-nodes"])
            .args(["-days", DAYS, "-subj", &subject, "-keyout"])
            .args([
                own.key.as_os_str(),
                "-out".as_ref(),
                own.certificate.as_ref(),
            ]);
        run(openssl, "openssl")?;
        Ok(own)
    }

    /// The file of the certificate, in PEM.
    #[must_use]
    pub fn certificate(&self) -> &Path {
        &self.certificate
    }

    /// Signs an EFI program.
    ///
    /// # Errors
    /// sbsign is missing, or does not accept `program`.
    pub fn sign(&self, program: &Path, to: &Path) -> Result<()> {
        let mut sbsign = Command::new("sbsign");
        for (option, value) in [("--key", &self.key), ("--cert", &self.certificate)] {
            sbsign.arg(option).arg(value);
        }
        sbsign.arg("--output").args([to, program]);
        run(sbsign, "sbsigntool")
    }

    /// Writes firmware variables into `file` under which the firmware starts what this key signed,
    /// and nothing else. `packages` is the folder in which Python finds virt-firmware.
    ///
    /// # Errors
    /// The firmware or the package is missing, or `file` cannot be written.
    pub fn enroll(&self, file: &Path, packages: &Path) -> Result<()> {
        self.write_variables(file, packages, None)
    }

    /// The same, and the firmware does not start the program with this Authenticode hash either (SHA-256, 64 hex digits),
    /// whatever key signed it: the list of forbidden images, `dbx`, has the hash.
    ///
    /// # Errors
    /// The errors of [`enroll`](Self::enroll), or `hash` has another form.
    pub fn enroll_forbidding(&self, hash: &str, file: &Path, packages: &Path) -> Result<()> {
        self.write_variables(file, packages, Some(hash))
    }

    fn write_variables(&self, file: &Path, packages: &Path, forbidden: Option<&str>) -> Result<()> {
        let template = tools::firmware(true)?.template;
        let mut python = python(packages);
        python
            .args(["-m", "virt.firmware.vars", "--loglevel", "warning"])
            .args([OsStr::new("--input"), template.as_ref()]);
        for option in ["--set-pk", "--add-kek", "--add-db"] {
            python.args([option, OWNER]).arg(&self.certificate);
        }
        if let Some(hash) = forbidden {
            python.args(["--add-dbx-hash", OWNER, hash]);
        }
        python
            // With Microsoft's keys the firmware would start what others signed, too.
            .args(["--no-microsoft", "--sb", "--output"])
            .arg(file);
        run(python, "virt-firmware")
    }
}

/// Python with these packages.
pub(crate) fn python(packages: &Path) -> Command {
    let mut python = Command::new("python3");
    python
        .env("PYTHONPATH", packages)
        .env("PYTHONDONTWRITEBYTECODE", "1");
    python
}

pub(crate) fn run(mut command: Command, package: &'static str) -> Result<()> {
    let what = format!("{} (of {package})", command.get_program().display());
    let output = command.output().map_err(Error::io(what.clone()))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::io(what)(std::io::Error::other(stderr)))
}

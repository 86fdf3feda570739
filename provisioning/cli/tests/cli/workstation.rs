//! A workstation without a user: a folder, a key, standard input, and the node that reads the
//! output.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use alknet_provision_cli::{
    ControllingTerminal, ProvisionArgs, ProvisionError, ProvisionHost, WordsTerminal, run,
};
use alknet_provisioning::{FileSystem, LoadedConfig, Mounted, Mounter, SourcePaths, load_with};
use clap::Parser;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const WORDS: &str = "abandon abandon abandon abandon abandon abandon abandon abandon \
                                abandon abandon abandon about";
/// The identity of these words, for device 0, from the brief's table.
pub(crate) const IDENTITY: &str =
    "ed25519:e78c2766a792f09bfccb51493968ac322283e8d021a30063784d806929762ecc";
pub(crate) const OWN_KEY: &str =
    "ed25519:1111111111111111111111111111111111111111111111111111111111111111";

#[derive(Debug, Parser)]
struct ProvisionCommandLine {
    #[command(flatten)]
    args: ProvisionArgs,
}

pub(crate) struct AdminWorkstation {
    pub(crate) dir: TempDir,
    pub(crate) input: Vec<u8>,
    /// The user's terminal, if there is a user.
    pub(crate) terminal: RefCell<Option<File>>,
}

struct WorkstationHost<'a>(&'a AdminWorkstation);

impl ProvisionHost for WorkstationHost<'_> {
    fn admin_key(&mut self) -> Result<String, String> {
        Ok(OWN_KEY.to_owned())
    }

    fn qr_code(&self, text: &str) -> Option<Vec<String>> {
        Some(vec![format!("QR of {text}")])
    }

    fn stdin(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut read = Vec::new();
        self.0
            .input
            .as_slice()
            .take(bytes as u64)
            .read_to_end(&mut read)?;
        Ok(read)
    }

    fn tell(&mut self, _: &str) {}

    fn terminal(&mut self) -> Option<Box<dyn WordsTerminal>> {
        let terminal = self.0.terminal.borrow_mut().take()?;
        Some(Box::new(ControllingTerminal::over(terminal)))
    }
}

impl AdminWorkstation {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("words.txt"), format!("{WORDS}\n")).expect("writable");
        Self {
            dir,
            input: Vec::new(),
            terminal: RefCell::new(None),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a command line. Words that begin with `@` are files of the workstation.
    pub(crate) fn run(&self, line: &str, json: bool) -> Result<String, ProvisionError> {
        let words = line
            .split_whitespace()
            .map(|word| match word.strip_prefix('@') {
                Some(name) => self.path(name).display().to_string(),
                None => word.to_owned(),
            });
        let cli =
            ProvisionCommandLine::try_parse_from(["provision".to_owned()].into_iter().chain(words));
        let cli = cli.unwrap_or_else(|error| panic!("{line}: {error}"));
        let mut out = Vec::new();
        run(&cli.args, json, &mut WorkstationHost(self), &mut out)?;
        Ok(String::from_utf8(out).expect("text"))
    }

    pub(crate) fn json(&self, line: &str) -> Value {
        let out = self
            .run(line, true)
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        serde_json::from_str(&out).expect("JSON")
    }

    /// The paths of an empty machine.
    pub(crate) fn machine(&self) -> SourcePaths {
        let mut paths = SourcePaths::system().with_config_dir(self.path("config"));
        for (name, path) in [
            ("fw_cfg", &mut paths.fw_cfg),
            ("class", &mut paths.block_class),
            ("dev", &mut paths.dev),
            ("dmi", &mut paths.dmi),
            ("efi", &mut paths.efi),
            ("cmdline", &mut paths.command_line),
            ("mnt", &mut paths.mount_point),
        ] {
            *path = self.path("machine").join(name);
        }
        fs::create_dir_all(&paths.dev).expect("writable");
        fs::create_dir_all(&paths.block_class).expect("writable");
        paths
    }

    /// What a machine loads with this image as its drive.
    pub(crate) fn boot_with(&self, image: &Path) -> LoadedConfig {
        let paths = self.machine();
        fs::create_dir_all(paths.block_class.join("vdb")).expect("writable");
        fs::copy(image, paths.dev.join("vdb")).expect("writable");
        load_with(&paths, &ImageTools::default())
    }
}

/// Reads images with the tools that users have.
#[derive(Default)]
pub(crate) struct ImageTools(RefCell<Vec<TempDir>>);

impl Mounter for ImageTools {
    fn mount(&self, device: &Path, file_system: FileSystem, _: &Path) -> io::Result<Mounted> {
        let dir = tempfile::tempdir()?;
        let (device, into) = (device.to_str().unwrap_or_default(), dir.path().to_str());
        let into = into.unwrap_or_default();
        match file_system {
            FileSystem::Vfat => tool("mcopy", &["-s", "-n", "-i", device, "::*", into]),
            _ => tool(
                "xorriso",
                &["-osirrox", "on", "-indev", device, "-extract", "/", into],
            ),
        };
        let root = Mounted::directory(dir.path().to_owned());
        self.0.borrow_mut().push(dir);
        Ok(root)
    }

    fn mount_writable(&self, _: &Path, _: FileSystem, _: &Path) -> io::Result<Mounted> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Runs a tool that the machine must have, and returns its output.
pub(crate) fn tool(program: &str, args: &[&str]) -> String {
    let path = format!(
        "{}:/usr/sbin:/sbin",
        std::env::var("PATH").unwrap_or_default()
    );
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

//! Programs of other projects that write a form, from a folder that is staged for them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs, io};

use crate::error::ImageError;
use crate::manifest::{ManifestSource, hex_sha256};

/// How much of a failed program's output an error keeps, in bytes.
const STDERR_BYTES_MAX: usize = 2000;

/// A program, and Debian's package that has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ImageTool {
    pub(crate) name: &'static str,
    pub(crate) package: &'static str,
    /// The program's path for a user whose search path lacks the system's own folder.
    pub(crate) fallback: Option<&'static str>,
}

impl ImageTool {
    /// Runs the program with what `arguments` adds, for the file `output`.
    pub(crate) fn run(
        &self,
        output: &Path,
        arguments: impl Fn(&mut Command),
    ) -> Result<(), ImageError> {
        let result = self.output(output, arguments)?;
        self.check(&result)
    }

    /// The program for the manifest: its version, and the hash of its file. `None` if it is missing.
    pub(crate) fn source(&self) -> Option<ManifestSource> {
        let program = self.executable()?;
        // The exit status does not count: mkfs.erofs 1.5 has no such option, and prints its version first all the same.
        let said = Command::new(&program).arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&said.stdout);
        // "mkfs.erofs 1.5", "mkfs.erofs (erofs-utils) 1.8.6", "xorriso 1.5.4 : RockRidge filesystem manipulator, …".
        let mut words = said
            .lines()
            .find(|line| !line.is_empty())?
            .split_whitespace();
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let hash = fs::read(&program).ok().map(|bytes| hex_sha256(&bytes));
        Some(ManifestSource::new(
            self.name,
            Some(version.to_owned()),
            hash,
        ))
    }

    /// The file that [`run`](Self::run) starts.
    fn executable(&self) -> Option<PathBuf> {
        let path = env::var_os("PATH").unwrap_or_default();
        let found = env::split_paths(&path).map(|folder| folder.join(self.name));
        let mut found = found.chain(self.fallback.map(PathBuf::from));
        found.find(|program| program.is_file())
    }

    fn output(
        &self,
        output: &Path,
        arguments: impl Fn(&mut Command),
    ) -> Result<Output, ImageError> {
        let run = |program: &str| {
            let mut command = Command::new(program);
            arguments(&mut command);
            command.env("LC_ALL", "C").output()
        };
        let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        match (run(self.name), self.fallback) {
            // sbin is not in the PATH of an ordinary user.
            (Err(error), Some(path)) if missing(&error) => run(path),
            (other, _) => other,
        }
        .map_err(|error| self.could_not_start(error, output))
    }

    fn could_not_start(&self, error: io::Error, output: &Path) -> ImageError {
        if error.kind() == io::ErrorKind::NotFound {
            return ImageError::ToolMissing {
                tool: self.name,
                package: self.package,
            };
        }
        ImageError::Output {
            path: output.to_owned(),
            source: error,
        }
    }

    fn check(&self, result: &Output) -> Result<(), ImageError> {
        if result.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&result.stderr);
        let stderr = stderr.trim();
        // The end of a tool's output has the reason.
        let start = stderr.ceil_char_boundary(stderr.len().saturating_sub(STDERR_BYTES_MAX));
        Err(ImageError::ToolFailed {
            tool: self.name,
            status: result.status.to_string(),
            stderr: stderr[start..].to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: ImageTool = ImageTool {
        name: "no-such-program-of-alknet",
        package: "erofs-utils",
        fallback: None,
    };

    #[test]
    fn a_tool_is_known_by_its_version_and_its_hash() {
        for name in ["mkfs.erofs", "xorriso"] {
            let tool = ImageTool {
                name,
                fallback: Some("/usr/sbin/mkfs.erofs"),
                ..MISSING
            };
            let source = tool.source().expect("it is installed");
            let version = source.version.expect("it prints one");
            assert!(version.contains('.'), "{name}: {version}");
            assert!(source.sha256.is_some_and(|hash| hash.len() == 64));
        }
    }

    #[test]
    fn a_missing_tool_names_its_package() {
        let error = MISSING
            .run(Path::new("x"), |_| ())
            .expect_err("there is no such program");
        assert_eq!(error.exit_code(), 4);
        assert!(error.to_string().contains("erofs-utils"), "{error}");
    }

    #[test]
    fn a_tool_outside_of_the_search_path_is_found() {
        let elsewhere = ImageTool {
            fallback: Some("/bin/true"),
            ..MISSING
        };
        elsewhere.run(Path::new("x"), |_| ()).expect("it succeeds");
    }
}

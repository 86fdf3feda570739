//! Programs of other projects that write a form, from a folder that is staged for them.

use std::io;
use std::path::Path;
use std::process::{Command, Output};

use crate::error::ImageError;

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

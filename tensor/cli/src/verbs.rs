//! What can be asked, as the command line spells it.

use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use alknet_tensor::tools;

/// The verbs below `alknet tensor` that need no connection.
#[derive(Debug, Subcommand)]
pub enum LocalTensorVerb {
    /// Write a tensor's bytes to standard output, or its values as JSON.
    #[command(
        after_help = "Examples:\n  alknet tensor cat model.mt weights --npy > weights.npy\n  \
alknet tensor cat model.mt points --rows 0:2 --json"
    )]
    Cat(CatArgs),
    /// Make a container of another, of a NumPy array or of an archive of them, and back.
    #[command(
        after_help = "Examples:\n  alknet tensor convert model.safetensors model.mt\n  \
alknet tensor convert model.mt arrays.npz"
    )]
    Convert(ConvertArgs),
    /// List what has to change in one file to have the tensors of another. Exits with 1 where
    /// something has.
    #[command(after_help = "Example:\n  alknet tensor diff old.mt new.mt")]
    Diff {
        /// The file as it is.
        first: PathBuf,
        /// The file as it shall be.
        second: PathBuf,
    },
    /// Print the BLAKE3 of a file, which is its id, of its header, its data and its tensors.
    #[command(after_help = "Example:\n  alknet tensor hash model.mt")]
    Hash {
        /// The container.
        file: PathBuf,
    },
    /// List the tensors of a file.
    #[command(
        alias = "ls",
        after_help = "Example:\n  alknet tensor list model.mt --json"
    )]
    List {
        /// The container.
        file: PathBuf,
    },
    /// Put the files of a folder into one container: NumPy arrays as tensors, others as items.
    #[command(after_help = "Example:\n  alknet tensor pack dataset dataset.mt")]
    Pack {
        /// The folder.
        folder: PathBuf,
        /// The container to be made.
        output: PathBuf,
        #[command(flatten)]
        layout: LayoutArgs,
    },
    /// Take everything from a file that stock safetensors does not write.
    #[command(after_help = "Example:\n  alknet tensor strip model.mt model.safetensors")]
    Strip {
        /// The container.
        input: PathBuf,
        /// The safetensors file to be made.
        output: PathBuf,
    },
    /// Check that a file is what it says. Exits with 1 where it is not.
    #[command(after_help = "Examples:\n  alknet tensor verify model.mt\n  \
alknet tensor verify model.mt --full")]
    Verify(VerifyArgs),
}

/// Arguments of `alknet tensor cat`.
#[derive(Debug, Args)]
pub struct CatArgs {
    /// The container.
    pub(crate) file: PathBuf,
    /// The tensor.
    pub(crate) name: String,
    /// Only these rows, records or items: from the first to before the second.
    #[arg(long, value_name = "A:B", value_parser = rows)]
    pub(crate) rows: Option<Range<u64>>,
    /// Put a NumPy header (version 1.0) in front.
    #[arg(long)]
    pub(crate) npy: bool,
}

/// Arguments of `alknet tensor convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// What there is.
    pub(crate) input: PathBuf,
    /// What is to be made.
    pub(crate) output: PathBuf,
    /// What the input is, where its name does not say it.
    #[arg(long, value_enum)]
    pub(crate) from: Option<FormatArg>,
    /// What the output is to be, where its name does not say it.
    #[arg(long, value_enum)]
    pub(crate) to: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
}

/// How a container is laid out.
#[derive(Clone, Copy, Debug, Args)]
pub struct LayoutArgs {
    /// Let tensors of a MiB and more begin with a page of the file.
    #[arg(long)]
    page_align: bool,
    /// Let tensors begin where a GPU can bind them.
    #[arg(long)]
    gpu: bool,
}

impl From<LayoutArgs> for tools::RewriteOptions {
    fn from(args: LayoutArgs) -> Self {
        Self {
            page_align: args.page_align,
            gpu: args.gpu,
        }
    }
}

/// Arguments of `alknet tensor verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The container.
    pub(crate) file: PathBuf,
    /// Look at values too: pads, offsets, booleans, members of enums, texts.
    #[arg(long, conflicts_with = "meta")]
    pub(crate) full: bool,
    /// Look at the header only.
    #[arg(long)]
    pub(crate) meta: bool,
}

/// A format as the command line spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FormatArg {
    /// A container with index and hashes.
    Metatensor,
    /// One NumPy array.
    Npy,
    /// An archive of them.
    Npz,
    /// A container as the stock package writes it.
    Safetensors,
}

impl From<FormatArg> for tools::ArrayFormat {
    fn from(arg: FormatArg) -> Self {
        match arg {
            FormatArg::Metatensor => Self::Metatensor,
            FormatArg::Npy => Self::Npy,
            FormatArg::Npz => Self::Npz,
            FormatArg::Safetensors => Self::Safetensors,
        }
    }
}

fn rows(text: &str) -> Result<Range<u64>, String> {
    let both = text.split_once(':');
    let range = both.and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    let range = range.filter(|range: &Range<u64>| range.start <= range.end);
    range.ok_or_else(|| format!("'{text}' is no range of rows; write 0:10 for the first ten"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_two_numbers() {
        assert_eq!(rows("0:10"), Ok(0..10));
        assert_eq!(rows("3:3"), Ok(3..3));
        for bad in [
            "",
            ":",
            "1",
            "2:1",
            "-1:2",
            "1:x",
            "1:2:3",
            "1:99999999999999999999",
        ] {
            assert!(rows(bad).is_err(), "{bad}");
        }
    }
}

//! The commands of `alknet tensor`, as the command line spells them.

use std::ops::Range;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use alknet_tensor::tools;

/// The verbs below `alknet tensor` that need no connection.
#[derive(Debug, Subcommand)]
pub enum LocalTensorVerb {
    /// Print the bytes of a tensor, or with --json its values.
    #[command(
        after_help = "Examples:\n  alknet tensor cat model.mt weights --npy > weights.npy\n  \
alknet tensor cat model.mt points --rows 0:2 --json"
    )]
    Cat(CatArgs),
    /// Convert between containers, safetensors files, NumPy arrays and archives of NumPy arrays.
    #[command(
        after_help = "Examples:\n  alknet tensor convert model.safetensors model.mt\n  \
alknet tensor convert model.mt arrays.npz"
    )]
    Convert(ConvertArgs),
    /// Compare the tensors of two files. The exit code is 1 if they differ.
    #[command(after_help = "Example:\n  alknet tensor diff old.mt new.mt")]
    Diff {
        /// The first file.
        first: PathBuf,
        /// The second file.
        second: PathBuf,
    },
    /// Print the BLAKE3 hashes of a file (its id), its header, its data and its tensors.
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
    /// Pack the files of a folder into one container: NumPy arrays as tensors, other files as items.
    #[command(after_help = "Example:\n  alknet tensor pack dataset dataset.mt")]
    Pack {
        /// The folder.
        folder: PathBuf,
        /// The container to make.
        output: PathBuf,
        #[command(flatten)]
        layout: LayoutArgs,
    },
    /// Write a copy of a file as stock safetensors writes it.
    #[command(after_help = "Example:\n  alknet tensor strip model.mt model.safetensors")]
    Strip {
        /// The container.
        input: PathBuf,
        /// The safetensors file to make.
        output: PathBuf,
    },
    /// Verify a file. The exit code is 1 if the file has a mistake.
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
    /// Print only the rows, records or items from A up to, but not including, B.
    #[arg(long, value_name = "A:B", value_parser = rows)]
    pub(crate) rows: Option<Range<u64>>,
    /// Print a NumPy header (version 1.0) before the bytes.
    #[arg(long)]
    pub(crate) npy: bool,
}

/// Arguments of `alknet tensor convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// The input file.
    pub(crate) input: PathBuf,
    /// The output file.
    pub(crate) output: PathBuf,
    /// The format of the input [default: by the ending of its name]
    #[arg(long, value_enum)]
    pub(crate) from: Option<FormatArg>,
    /// The format of the output [default: by the ending of its name]
    #[arg(long, value_enum)]
    pub(crate) to: Option<FormatArg>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
}

/// How a container is laid out.
#[derive(Clone, Copy, Debug, Args)]
pub struct LayoutArgs {
    /// Align tensors of 1 MiB and more to pages of the file.
    #[arg(long)]
    page_align: bool,
    /// Align tensors to offsets that a GPU can bind.
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
    /// Also verify values: padding, offsets, booleans, members of enums, texts.
    #[arg(long, conflicts_with = "meta")]
    pub(crate) full: bool,
    /// Verify only the header.
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
    /// An archive of NumPy arrays.
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
    // An empty range is valid: it prints no rows.
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

//! `alknet fs`: files of a node, in buckets with branches, snapshots and a history.

mod address;
mod branch;
mod bucket;
mod cat;
mod change;
mod connection;
mod content;
mod failure;
mod get;
mod list;
mod put;
mod share;
mod snapshot;
mod source;
mod target;
mod upkeep;
mod upload;

use clap::Subcommand;

use super::row_args::NodeRowArgs;
use super::target::NodeArgs;
use super::{CommandError, CommandExit};
use address::FilesArgs;
use branch::{BranchMergeArgs, BranchVerb};
use bucket::{BucketRow, BucketVerb};
use change::{CopyFilesArgs, MoveFilesArgs, RemoveFilesArgs};
use get::GetArgs;
use list::{HistoryArgs, ListArgs};
use put::PutArgs;
use share::ShareVerb;
use snapshot::SnapshotVerb;
use upkeep::{RepairFilesArgs, VerifyFilesArgs};

/// The verbs below `alknet fs`.
#[derive(Debug, Subcommand)]
pub(crate) enum FsVerb {
    /// Make, list, compare, close and delete branches of a bucket.
    #[command(subcommand)]
    Branch(BranchVerb),
    /// Make, list, change and delete buckets.
    #[command(subcommand)]
    Bucket(BucketVerb),
    /// Print the content of a file. A terminal gets its text; a pipe or a file gets its bytes.
    #[command(
        override_usage = "alknet fs cat [OPTIONS] [NODE] <ADDRESS>",
        after_help = "Examples:\n  alknet fs cat attic docs:/2026/report.txt\n  \
alknet fs cat attic 'docs#17:/2026/report.txt' > before.txt"
    )]
    Cat(FilesArgs),
    /// Copy a file or a directory within the node, also from another version, branch or bucket. No bytes are copied.
    #[command(
        override_usage = "alknet fs cp [OPTIONS] [NODE] <ADDRESS> <ADDRESS>",
        after_help = "Examples:\n  alknet fs cp attic docs:/report.txt docs:/2026/\n  \
alknet fs cp attic 'docs#17:/report.txt' docs:/report.txt --force\n  \
alknet fs cp attic docs@draft:/2026 archive:/2026 --recursive"
    )]
    Cp(CopyFilesArgs),
    /// Free the space of former versions whose retention is over, and of contents that no name leads to. The node does
    /// this by itself every few hours.
    #[command(after_help = "Example:\n  alknet fs gc attic")]
    Gc(NodeArgs),
    /// Fetch a file, or a directory with everything below it. Each file is compared with its hash, and has its name
    /// only when it is whole.
    #[command(
        override_usage = "alknet fs get [OPTIONS] [NODE] <ADDRESS> [TARGET]",
        after_help = "Examples:\n  alknet fs get attic docs:/2026/report.txt\n  \
alknet fs get attic docs:/2026 ./backup/\n  alknet fs get attic docs:/.snap/monday ./monday\n\n\
A TARGET with a slash at its end is a folder that takes the entry under its own name."
    )]
    Get(GetArgs),
    /// List the versions of a file or a directory, the newest first.
    #[command(
        override_usage = "alknet fs log [OPTIONS] [NODE] <ADDRESS>",
        after_help = "Examples:\n  alknet fs log attic docs:/2026/report.txt\n  \
alknet fs log attic docs@draft:/2026/report.txt --last 5 --json"
    )]
    Log(HistoryArgs),
    /// List a directory; without an address the buckets.
    #[command(
        override_usage = "alknet fs ls [OPTIONS] [NODE] [ADDRESS]",
        after_help = "Examples:\n  alknet fs ls attic\n  alknet fs ls attic docs:/ -l\n  \
alknet fs ls attic docs@draft:/2026 --recursive\n  alknet fs ls attic docs:/.snap/monday"
    )]
    Ls(ListArgs),
    /// Take in what a branch changed.
    #[command(
        override_usage = "alknet fs merge [OPTIONS] [NODE] <BUCKET@BRANCH>",
        after_help = "Examples:\n  alknet fs merge attic docs@draft\n  \
alknet fs merge attic docs@draft --into spring --strategy keep-both --close"
    )]
    Merge(BranchMergeArgs),
    /// Move a file or a directory within its branch.
    #[command(
        override_usage = "alknet fs mv [OPTIONS] [NODE] <ADDRESS> <ADDRESS>",
        after_help = "Examples:\n  alknet fs mv attic docs:/draft.txt docs:/2026/report.txt\n  \
alknet fs mv attic docs:/report.txt docs:/2026/"
    )]
    Mv(MoveFilesArgs),
    /// Store files, folders with everything below them, or standard input. A file has its new content when all of it
    /// arrived, and until then the content of before.
    #[command(
        override_usage = "alknet fs put [OPTIONS] [NODE] <FILE>... <ADDRESS>",
        after_help = "Examples:\n  alknet fs put attic report.txt docs:/2026/\n  \
alknet fs put attic ./photos docs:/photos\n  date | alknet fs put attic - docs:/now.txt\n  \
alknet fs put attic report.txt docs:/2026/report.txt --if-match HASH\n\n\
An ADDRESS with a slash at its end is a directory that takes each FILE under its own name."
    )]
    Put(PutArgs),
    /// Show what a bucket uses of its quotas.
    #[command(
        override_usage = "alknet fs quota [OPTIONS] [NODE] <BUCKET>",
        after_help = "Example:\n  alknet fs quota attic docs"
    )]
    Quota(NodeRowArgs<BucketRow>),
    /// Repair the file of names from its newest good copy, after the node set a damaged one aside.
    #[command(
        after_help = "Examples:\n  alknet fs repair attic\n  alknet fs repair attic --release-sweep"
    )]
    Repair(RepairFilesArgs),
    /// Delete files, and with --recursive directories. Former versions stay until the retention of the bucket is over.
    #[command(
        override_usage = "alknet fs rm [OPTIONS] [NODE] <ADDRESS>...",
        after_help = "Examples:\n  alknet fs rm attic docs:/2026/report.txt\n  \
alknet fs rm attic docs:/2025 --recursive"
    )]
    Rm(RemoveFilesArgs),
    /// Compare all contents of a node with their hashes. The exit code is 1 if one is damaged.
    #[command(after_help = "Example:\n  alknet fs scrub attic")]
    Scrub(NodeArgs),
    /// Let the holder of a key that the node does not know fetch one content; list and end such shares.
    #[command(subcommand)]
    Share(ShareVerb),
    /// Make, list and delete snapshots of a bucket.
    #[command(subcommand)]
    Snapshot(SnapshotVerb),
    /// Compare files on a node with their hashes, without fetching them.
    #[command(
        override_usage = "alknet fs verify [OPTIONS] [NODE] <ADDRESS|HASH>...",
        after_help = "Example:\n  alknet fs verify attic docs:/2026/report.txt"
    )]
    Verify(VerifyFilesArgs),
}

/// `alknet fs`
pub(crate) fn run(verb: FsVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        FsVerb::Branch(verb) => branch::run(verb, json),
        FsVerb::Bucket(verb) => bucket::run(verb, json),
        FsVerb::Cat(args) => cat::run(args, json),
        FsVerb::Cp(args) => change::copy(args, json),
        FsVerb::Gc(args) => upkeep::collect(&args, json),
        FsVerb::Get(args) => get::run(args, json),
        FsVerb::Log(args) => list::run_history(args, json),
        FsVerb::Ls(args) => list::run(args, json),
        FsVerb::Merge(args) => branch::merge(args, json),
        FsVerb::Mv(args) => change::rename(args, json),
        FsVerb::Put(args) => put::run(args, json),
        FsVerb::Quota(row) => bucket::quota(row, json),
        FsVerb::Repair(args) => upkeep::repair(&args, json),
        FsVerb::Rm(args) => change::remove(args, json),
        FsVerb::Scrub(args) => upkeep::scrub(&args, json),
        FsVerb::Share(verb) => share::run(verb, json),
        FsVerb::Snapshot(verb) => snapshot::run(verb, json),
        FsVerb::Verify(args) => upkeep::verify(args, json),
    }
}

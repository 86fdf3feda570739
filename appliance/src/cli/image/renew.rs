//! `alknet image renew`: a later timestamp for an update bundle.

use std::path::PathBuf;

use alknet_update::limits::{ROOT_BYTES_MAX, TIMESTAMP_BYTES_MAX};
use alknet_update::{
    BundleReader, MetadataRequest, MetadataSource as _, UpdateError, renew_timestamp,
    replace_timestamp,
};
use clap::Args;
use serde_json::json;

use super::bundle::of_signing;
use super::named_output::put;
use super::read_bounded;
use super::release::{ExpiryTime, ReleaseKeyArgs};
use crate::cli::{CommandError, CommandExit, output};

/// Longest bundle in bytes, as machines take one.
pub(super) const BUNDLE_BYTES_MAX: u64 = 1 << 30;

/// Arguments of `alknet image renew`.
#[derive(Debug, Args)]
pub(crate) struct ImageRenewArgs {
    /// The bundle.
    bundle: PathBuf,
    #[command(flatten)]
    keys: ReleaseKeyArgs,
    /// The newest root document: a file of your own, and not one from the server of the bundle.
    #[arg(long, value_name = "FILE")]
    root: PathBuf,
    /// The number of the release that is the newest one, as it was given to 'image bundle'. A bundle of another release is
    /// refused.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    release: u64,
    /// The number of the timestamp: higher than that of any release and of any timestamp before, in either channel.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    number: u64,
    /// When machines stop to believe that this is the newest release.
    #[arg(long, value_name = "TIME")]
    timestamp_expires: ExpiryTime,
    /// The file for the bundle with the new timestamp.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
pub(super) fn run(args: &ImageRenewArgs, json: bool) -> Result<CommandExit, CommandError> {
    let path = args.bundle.display();
    let refused = |error: UpdateError| CommandError::usage(format!("{path}: {error}"));
    let root = read_bounded(&args.root, ROOT_BYTES_MAX)?;
    let bundle = read_bounded(&args.bundle, BUNDLE_BYTES_MAX)?;
    let request = MetadataRequest {
        name: "timestamp.json".to_owned(),
        bytes_max: TIMESTAMP_BYTES_MAX,
        is_optional: false,
    };
    let mut reader = BundleReader::open(&*bundle).map_err(refused)?;
    let before = reader.metadata(&request).map_err(refused)?;
    let before =
        before.ok_or_else(|| CommandError::usage(format!("{path} has no {}", request.name)))?;
    let (release, number, expires) = (args.release, args.number, args.timestamp_expires.0);
    let timestamp = args.keys.with_signers(|signers| {
        renew_timestamp(&root, &before, release, number, expires, signers).map_err(of_signing)
    })?;
    let mut renewed = Vec::new();
    replace_timestamp(&*bundle, &timestamp, &mut renewed).map_err(refused)?;
    put(&args.out, &renewed)?;
    if json {
        output::json_line(&json!({
            "file": args.out,
            "bytes": renewed.len(),
            "release": release,
            "number": number,
            "timestamp_expires": expires.to_string(),
        }))?;
        return Ok(CommandExit::Ok);
    }
    output::line(&args.out.display().to_string())?;
    output::note(&format!(
        "alknet: release {release} has timestamp {number}, valid until {expires}"
    ));
    Ok(CommandExit::Ok)
}

//! `alknet image root`: the root document of updates, which names the keys that may sign releases.

use std::path::PathBuf;

use alknet_update::limits::ROOT_BYTES_MAX;
use alknet_update::{
    KeyThreshold, MetadataSigner, MissingSignatures, RootPlan, TufPublicKey, TufRole, begin_root,
    sign_root,
};
use clap::Args;
use serde_json::{Value, json};

use super::cosign::{missing_json, note_missing};
use super::named_output::put;
use super::read_bounded;
use super::release::{ExpiryTime, ReleaseKeyArgs};
use crate::cli::{CommandError, CommandExit, output};

/// Arguments of `alknet image root`.
#[derive(Debug, Args)]
pub(crate) struct ImageRootArgs {
    #[command(flatten)]
    keys: ReleaseKeyArgs,
    /// A key that may sign releases and the next root document, as 'alknet vault key show image-signing' prints it; may
    /// be repeated [default: the keys that sign]
    #[arg(long, value_name = "KEY")]
    trust: Vec<TufPublicKey>,
    /// How many of the keys have to sign.
    #[arg(long, value_name = "N", default_value = "1")]
    threshold: usize,
    /// A key that may renew the timestamp, on a machine without the other keys; may be repeated. One of them has to sign
    /// [default: as releases]
    #[arg(long, value_name = "KEY")]
    timestamp_key: Vec<TufPublicKey>,
    /// The root document that this one replaces. As many of its keys as it asks for have to sign, too.
    #[arg(long, value_name = "FILE")]
    previous: Option<PathBuf>,
    /// Make the document also with fewer signatures than have to be on it. Others add theirs by 'alknet image cosign'.
    #[arg(long)]
    incomplete: bool,
    /// When machines stop to trust the document, unless another follows: a day, or a time in UTC.
    #[arg(long, value_name = "TIME")]
    expires: ExpiryTime,
    /// The file for the document. Keep every version of it: bundles have them all.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs it.
pub(super) fn run(args: &ImageRootArgs, json: bool) -> Result<CommandExit, CommandError> {
    let previous = match &args.previous {
        Some(path) => Some(read_bounded(path, ROOT_BYTES_MAX)?),
        None => None,
    };
    let version = match &previous {
        Some(document) => next_version(document)?,
        None => 1,
    };
    let made = args.keys.with_signers(|signers| {
        let plan = args.plan(version, signers)?;
        let (document, missing) = args.sign(&plan, previous.as_deref(), signers)?;
        Ok((document, missing, plan))
    });
    let (document, missing, plan) = made?;
    let out = args.out.display();
    put(&args.out, &document)?;
    let keys = &plan.roles[&TufRole::Targets];
    let names: Vec<String> = keys.keys().map(|key| key.to_string()).collect();
    if json {
        output::json_line(&json!({
            "file": args.out,
            "version": version,
            "expires": plan.expires.to_string(),
            "keys": names,
            "threshold": keys.threshold(),
            "missing": missing_json(&missing),
        }))?;
        return Ok(CommandExit::Ok);
    }
    output::line(&out.to_string())?;
    let (threshold, number) = (keys.threshold(), names.len());
    output::note(&format!(
        "alknet: root document {version}, valid until {}; {threshold} of these {number} keys sign releases:",
        plan.expires
    ));
    for name in names {
        output::note(&format!("  {name}"));
    }
    note_missing(&missing, &args.out);
    Ok(CommandExit::Ok)
}

impl ImageRootArgs {
    /// The document, and the signatures that it lacks.
    fn sign(
        &self,
        plan: &RootPlan,
        previous: Option<&[u8]>,
        signers: &[&dyn MetadataSigner],
    ) -> Result<(Vec<u8>, Vec<MissingSignatures>), CommandError> {
        if self.incomplete {
            let begun = begin_root(plan, previous, signers).map_err(CommandError::usage)?;
            return Ok((begun.document, begun.missing));
        }
        let document = sign_root(plan, previous, signers).map_err(CommandError::usage)?;
        Ok((document, Vec::new()))
    }

    fn plan(
        &self,
        version: u64,
        signers: &[&dyn MetadataSigner],
    ) -> Result<RootPlan, CommandError> {
        let trusted = match self.trust.is_empty() {
            true => signers.iter().map(|signer| signer.public_key()).collect(),
            false => self.trust.clone(),
        };
        let keys = KeyThreshold::new(trusted, self.threshold).map_err(CommandError::usage)?;
        let mut plan = RootPlan::with_keys(version, self.expires.0, &keys);
        if !self.timestamp_key.is_empty() {
            let keys = KeyThreshold::new(self.timestamp_key.iter().copied(), 1);
            let keys = keys.map_err(CommandError::usage)?;
            // A thief of these keys, which are on a machine, can hide a release, and cannot make one.
            for role in [TufRole::Snapshot, TufRole::Timestamp] {
                plan.roles.insert(role, keys.clone());
            }
        }
        Ok(plan)
    }
}

/// The version behind that of a root document, whose signatures `sign_root` checks.
fn next_version(document: &[u8]) -> Result<u64, CommandError> {
    root_version(document)?
        .checked_add(1)
        .ok_or_else(|| CommandError::usage("the root document has the last version"))
}

/// The version of a root document.
pub(super) fn root_version(document: &[u8]) -> Result<u64, CommandError> {
    let parsed: Result<Value, _> = serde_json::from_slice(document);
    let signed = parsed.ok().map(|whole| whole["signed"].clone());
    let signed = signed.filter(|signed| signed["_type"] == "root");
    let version = signed.and_then(|signed| signed["version"].as_u64());
    version.ok_or_else(|| {
        CommandError::usage("this is no root document of updates; alknet image root makes one")
    })
}

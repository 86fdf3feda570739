//! `fs/bucket/…`: buckets, their quotas and what they use.

use alknet_call::Registration;
use alknet_store::limits::PAGE_ENTRIES_MAX;
use alknet_store::{
    BucketKind, BucketName, BucketSettings, ContentFetchMode, Durability, NewBucket,
};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{FsCall, mutation, once, query, schema, shown};
use crate::error::FsError;
use crate::rights::FsRight;
use crate::service::FsService;

pub(super) fn operations(service: &FsService) -> Vec<Registration> {
    vec![
        create(service),
        list(service),
        set(service),
        delete(service),
        usage(service),
    ]
}

fn bucket_schema() -> Value {
    schema::output(
        &[
            "name",
            "kind",
            "owner",
            "created_ms",
            "retention_s",
            "state",
            "durability",
        ],
        json!({
            "name": schema::bucket(), "kind": { "type": "string" }, "owner": schema::actor(),
            "created_ms": schema::time(),
            "quota_bytes": { "type": ["integer", "null"] },
            "quota_entries": { "type": ["integer", "null"] },
            "retention_s": schema::count("Seconds for which it keeps former versions"),
            "synced": { "type": "boolean" },
            "fetch": { "enum": ["eager", "lazy", "none"] },
            "keep_both": { "type": "boolean" },
            "split": { "type": "boolean" },
            "state": { "enum": ["live", "frozen"] },
            "durability": { "enum": ["full", "normal"] },
        }),
    )
}

fn settings_members() -> Value {
    let quota = |of: &str| {
        json!({ "type": ["integer", "null"], "minimum": 0, "maximum": i64::MAX,
                "description": format!("Most {of}; null is no limit") })
    };
    json!({
        "quota_bytes": quota("bytes of distinct contents"),
        "quota_entries": quota("versions of entries"),
        "retention_s": { "type": "integer", "minimum": 0, "maximum": schema::MS_MAX / 1000,
                         "description": "Seconds for which former versions are kept" },
        "durability": { "enum": ["full", "normal"],
                        "description": "With normal a power cut can take the last acknowledged writes" },
    })
}

/// A limit that a request sets, removes (`null`) or leaves out.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::<u64>::deserialize(deserializer).map(Some)
}

#[derive(Debug, Default, Deserialize)]
struct SettingsInput {
    #[serde(default, deserialize_with = "given")]
    quota_bytes: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    quota_entries: Option<Option<u64>>,
    retention_s: Option<u64>,
    durability: Option<String>,
    owner: Option<String>,
    frozen: Option<bool>,
    synced: Option<bool>,
    fetch: Option<String>,
    keep_both: Option<bool>,
    split: Option<bool>,
}

impl SettingsInput {
    fn durability(&self) -> Option<Durability> {
        // The schema knows no third one.
        self.durability.as_deref().map(|name| match name {
            "normal" => Durability::Normal,
            _ => Durability::Full,
        })
    }
}

fn create(service: &FsService) -> Registration {
    let members = json!({
        "bucket": schema::bucket(),
        "kind": { "enum": ["files", "git", "tensor", "msg"], "default": "files" },
    });
    let spec = mutation(
        "fs/bucket/create",
        "Makes a bucket with its branch main. It belongs to the caller.",
    )
    .with_input(schema::input(
        &["bucket"],
        schema::joined(&[members, settings_members()]),
        json!({ "bucket": "docs", "quota_bytes": 1_073_741_824 }),
    ))
    .with_output(bucket_schema());
    once(service, spec, run_create)
}

#[derive(Deserialize)]
struct BucketCreateInput {
    bucket: String,
    kind: Option<String>,
    #[serde(flatten)]
    settings: SettingsInput,
}

async fn run_create(call: FsCall) -> Result<Value, FsError> {
    let input: BucketCreateInput = call.parse()?;
    let name = call.bucket(FsRight::Admin, &input.bucket)?;
    let kind = input.kind.as_deref();
    let kind = kind.map_or(Some(BucketKind::Files), BucketKind::from_name);
    // The node alone makes these.
    let kind = kind.filter(|kind| *kind != BucketKind::System);
    let kind = kind.ok_or_else(|| FsError::input("there is no such kind of bucket"))?;
    let mut new = NewBucket::new(name, call.requester.actor());
    new.kind = kind;
    let settings = input.settings;
    // What the caller does not name has the default of the store.
    new.durability = settings.durability().unwrap_or_default();
    new.quota_bytes = settings.quota_bytes.unwrap_or(new.quota_bytes);
    new.quota_entries = settings.quota_entries.unwrap_or(new.quota_entries);
    new.retention_s = settings.retention_s.unwrap_or(new.retention_s);
    call.audit("fs/bucket/create", &input.bucket);
    let created = call.write(Durability::Full, move |tx| tx.create_bucket(&new));
    let (bucket, _) = created.await?;
    Ok(shown::bucket(&bucket))
}

fn list(service: &FsService) -> Registration {
    let spec = query(
        "fs/bucket/list",
        "Lists the buckets that the caller has a right in, in pages.",
    )
    .with_input(schema::input(
        &[],
        schema::page_members(),
        json!({ "limit": 100 }),
    ))
    .with_output(schema::page(
        "buckets",
        &bucket_schema(),
        &schema::next_text(),
    ));
    once(service, spec, run_list)
}

#[derive(Deserialize)]
struct BucketListInput {
    page: Option<String>,
    limit: Option<usize>,
}

async fn run_list(call: FsCall) -> Result<Value, FsError> {
    let input: BucketListInput = call.parse()?;
    let after = input.page.as_deref().map(BucketName::parse).transpose()?;
    // One more is asked for, which the store has to return.
    let limit = input
        .limit
        .unwrap_or(PAGE_ENTRIES_MAX)
        .min(PAGE_ENTRIES_MAX - 1);
    // Any right shows a bucket. Without one it looks as if it did not exist.
    let visible = call.requester.buckets(&FsRight::ALL);
    let found = call.read(move |tx| visible.existing(tx, after.as_ref(), limit + 1));
    let mut found = found.await?;
    let has_more = found.len() > limit;
    found.truncate(limit);
    let rows: Vec<_> = found.iter().map(shown::bucket).collect();
    let mut answer = json!({ "buckets": rows });
    if let Some(last) = found.last().filter(|_| has_more) {
        answer["next"] = last.name.as_str().into();
    }
    Ok(answer)
}

fn set(service: &FsService) -> Registration {
    let members = json!({
        "bucket": schema::bucket(), "owner": schema::actor(),
        "frozen": { "type": "boolean", "description": "Whether the bucket takes no changes" },
        "synced": { "type": "boolean", "description": "Whether it is synchronised with peers" },
        "fetch": { "enum": ["eager", "lazy", "none"],
                   "description": "When contents of names that peers made are fetched: at once, when they are read, never" },
        "keep_both": { "type": "boolean",
                       "description": "Whether a file that loses against a change of a peer is put beside the winner" },
        "split": { "type": "boolean",
                   "description": "Whether each name in the root is synchronised by itself, for more than 200,000 paths; \
                                   the same on all nodes" },
    });
    let spec = mutation(
        "fs/bucket/set",
        "Changes settings of a bucket. A quota below the present use refuses further growth, and deletes nothing.",
    )
    .with_input(schema::input(
        &["bucket"],
        schema::joined(&[members, settings_members()]),
        json!({ "bucket": "docs", "quota_entries": null, "retention_s": 86_400 }),
    ))
    .with_output(bucket_schema());
    once(service, spec, run_set)
}

#[derive(Deserialize)]
struct BucketSetInput {
    bucket: String,
    #[serde(flatten)]
    settings: SettingsInput,
}

async fn run_set(call: FsCall) -> Result<Value, FsError> {
    let input: BucketSetInput = call.parse()?;
    let name = call.bucket(FsRight::Admin, &input.bucket)?;
    let durability = input.settings.durability();
    let settings = BucketSettings {
        owner: input.settings.owner,
        quota_bytes: input.settings.quota_bytes,
        quota_entries: input.settings.quota_entries,
        retention_s: input.settings.retention_s,
        is_synced: input.settings.synced,
        // The schema knows no further mode.
        fetch: input
            .settings
            .fetch
            .as_deref()
            .and_then(ContentFetchMode::from_name),
        keeps_both: input.settings.keep_both,
        is_split: input.settings.split,
        is_frozen: input.settings.frozen,
        durability,
    };
    let actor = call.requester.actor().to_owned();
    call.audit("fs/bucket/set", &input.bucket);
    let set = call.write(Durability::Full, move |tx| {
        // In the transaction: another bucket may have got the name since the call began.
        let bucket = tx.bucket_by_name(&name)?.id;
        tx.set_bucket(bucket, &settings, &actor)
    });
    Ok(shown::bucket(&set.await?))
}

fn delete(service: &FsService) -> Registration {
    let spec = mutation(
        "fs/bucket/delete",
        "Deletes a bucket with everything in it. Its name is free at once; collections free its room.",
    )
    .with_input(schema::input(
        &["bucket"],
        json!({ "bucket": schema::bucket() }),
        json!({ "bucket": "docs" }),
    ))
    .with_output(schema::output(&[], json!({})));
    once(service, spec, run_delete)
}

#[derive(Deserialize)]
struct BucketInput {
    bucket: String,
}

async fn run_delete(call: FsCall) -> Result<Value, FsError> {
    let input: BucketInput = call.parse()?;
    let name = call.bucket(FsRight::Admin, &input.bucket)?;
    call.audit("fs/bucket/delete", &input.bucket);
    let deleted = call.write(Durability::Full, move |tx| {
        // In the transaction, so that one of two deletions at the same time finds no bucket.
        let bucket = tx.bucket_by_name(&name)?.id;
        tx.delete_bucket(bucket)
    });
    deleted.await?;
    Ok(json!({}))
}

fn usage(service: &FsService) -> Registration {
    let spec = query("fs/bucket/usage", "Says what a bucket uses of its quotas.")
        .with_input(schema::input(
            &["bucket"],
            json!({ "bucket": schema::bucket() }),
            json!({ "bucket": "docs" }),
        ))
        .with_output(schema::output(
            &["bytes", "entries", "staged"],
            json!({
                "bytes": schema::count("Bytes of distinct contents and of jobs, former versions counted"),
                "entries": schema::count("Versions of entries, deletions left out"),
                "staged": schema::count("Bytes of open write sessions"),
                "quota_bytes": { "type": ["integer", "null"] },
                "quota_entries": { "type": ["integer", "null"] },
            }),
        ));
    once(service, spec, run_usage)
}

async fn run_usage(call: FsCall) -> Result<Value, FsError> {
    let input: BucketInput = call.parse()?;
    let name = call.bucket(FsRight::Read, &input.bucket)?;
    let found = call.read(move |tx| {
        // In one transaction, so that use and quotas are of one moment.
        let bucket = tx.bucket_by_name(&name)?;
        let usage = tx.usage(bucket.id)?;
        Ok((bucket, usage))
    });
    let (bucket, usage) = found.await?;
    Ok(json!({
        "bytes": usage.bytes, "entries": usage.entries, "staged": usage.staged,
        "quota_bytes": bucket.quota_bytes, "quota_entries": bucket.quota_entries,
    }))
}

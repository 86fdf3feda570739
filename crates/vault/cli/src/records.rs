//! The verbs of sealed records.

use alknet_vault::SealedBlob;
use alknet_vault::limits::MAX_PLAINTEXT_BYTES;
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::args::{DirArgs, RecordArgs, RemoveArgs, SealArgs, VaultRotateArgs};
use crate::vault_dir::{OpenVaultDir, VaultDir};
use crate::verbs::RecordVerb;
use crate::{VaultCli, VaultCliError};

impl VaultCli<'_> {
    pub(crate) fn sealed_record(&mut self, verb: RecordVerb) -> Result<(), VaultCliError> {
        match verb {
            RecordVerb::Add(args) => self.seal(&args),
            RecordVerb::List(vault_dir) => self.list(&vault_dir),
            RecordVerb::Remove(args) => self.remove(&args),
            RecordVerb::Rotate(args) => self.rotate(&args),
            RecordVerb::Show(args) => self.open(&args),
        }
    }

    fn seal(&mut self, args: &SealArgs) -> Result<(), VaultCliError> {
        let (print, args) = (args.print, &args.record);
        let opened = OpenVaultDir::open(&args.open, self.ask)?;
        // The vault is opened first: a passphrase from standard input comes before the data.
        let plain = self.ask.rest(MAX_PLAINTEXT_BYTES)?;
        if print {
            let blob = opened.vault.seal(&args.label, plain.expose())?;
            opened.finish()?;
            return self.print_record(args.label.as_str(), &blob);
        }
        let records = opened.records()?;
        let blob = opened.vault.seal(&args.label, plain.expose())?;
        records.put(&args.label, &blob)?;
        opened.finish()?;
        let version = blob.key_version().number();
        let value = json!({ "label": args.label.as_str(), "key_version": version });
        self.print(&value, &format!("{} is sealed", args.label))
    }

    /// Prints a record as JSON, or as TOML for a configuration.
    fn print_record(&mut self, label: &str, blob: &SealedBlob) -> Result<(), VaultCliError> {
        let record: Value = serde_json::from_str(&blob.to_json()).unwrap_or_default();
        let fields = record.as_object().into_iter().flatten();
        // The values are numbers and base64 strings, whose JSON text is valid TOML.
        let lines: Vec<_> = fields
            .map(|(key, value)| format!("{key} = {value}"))
            .collect();
        let text = format!("[credentials.record]\n{}", lines.join("\n"));
        self.print(&json!({ "label": label, "record": record }), &text)
    }

    fn open(&mut self, args: &RecordArgs) -> Result<(), VaultCliError> {
        let opened = OpenVaultDir::open(&args.open, self.ask)?;
        let blob = opened.records()?.get(&args.label)?;
        let plain = opened.vault.open(&args.label, &blob);
        // The log is written before the result is evaluated, because a failed attempt is an event
        // as well.
        opened.finish()?;
        let plain = plain?;
        if self.json {
            let data = BASE64.encode(plain.expose());
            let value = json!({ "label": args.label.as_str(), "data": data });
            return self.print(&value, "");
        }
        // The secret is printed exactly as it was sealed, without an added newline.
        self.out.write_all(plain.expose())?;
        self.out.flush()?;
        Ok(())
    }

    fn list(&mut self, vault_dir: &DirArgs) -> Result<(), VaultCliError> {
        let vault_dir = VaultDir::unlocked(&vault_dir.dir);
        vault_dir.load()?;
        let entries = match vault_dir.records()? {
            Some(records) => records.list()?,
            None => Vec::new(),
        };
        let value: Vec<_> = entries
            .iter()
            .map(|entry| json!({"label": entry.label.as_str(), "key_version": entry.version.number()}))
            .collect();
        let text: Vec<_> = entries
            .iter()
            .map(|entry| format!("{:>4}  {}", entry.version, entry.label))
            .collect();
        self.print(&json!({ "records": value }), &text.join("\n"))
    }

    fn remove(&mut self, args: &RemoveArgs) -> Result<(), VaultCliError> {
        // Removing needs the lock but no key, because the label of a record is not secret.
        let vault_dir = VaultDir::existing(&args.vault_dir.dir)?;
        match vault_dir.records()? {
            Some(records) => records.remove(&args.label)?,
            None => {
                let text = format!("there is no record {}", args.label);
                return Err(VaultCliError::NotFound(text));
            }
        }
        let value = json!({ "removed": args.label.as_str() });
        self.print(&value, &format!("{} is gone", args.label))
    }

    fn rotate(&mut self, args: &VaultRotateArgs) -> Result<(), VaultCliError> {
        let opened = OpenVaultDir::open(&args.open, self.ask)?;
        let records = opened.records()?;
        let rotated = records.rotate_to(&opened.vault, args.to);
        opened.finish()?;
        let count = rotated?;
        let value = json!({ "key_version": args.to.number(), "records": count });
        let text = format!(
            "{count} records have version {}; older ones are refused",
            args.to
        );
        self.print(&value, &text)
    }
}

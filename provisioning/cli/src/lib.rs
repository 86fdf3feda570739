//! `alknet provision`: makes everything that a node reads at its first start, on its owner's
//! computer.
//!
//! The command makes the words, shows them once and asks for some of them. It builds the document
//! and checks it as the node will. It writes the seed in the form that the machine takes. The
//! node's key follows from the words, so it is known before the node has started. [`run`] does all
//! this, and gets what depends on the computer from [`ProvisionHost`].

mod args;
mod document;
mod error;
mod media;
mod seed;
mod tty;
mod words;

use std::io::{self, Write};
use std::path::Path;

use alknet_core::config::{LinkMethod, NodeConfig, VaultInit, VaultUnlock};
use alknet_vault::slots::{SeedKey, VaultId};
use alknet_vault::{Entropy, KeyPurpose, PathIndex, SecretStr, Vault};
use data_encoding::HEXLOWER;
use serde_json::json;

pub use args::{ProvisionArgs, SeedForm, WordsOrigin};
pub use error::ProvisionError;
pub use seed::COMMAND_LINE_BYTES_MAX;
pub use tty::ControllingTerminal;
pub use words::WordsTerminal;

use document::SeedDocument;
use seed::{NodeSeed, WrittenFiles};

/// Longest document read from standard input.
const INPUT_BYTES_MAX: usize = alknet_core::config::CONFIG_BYTES_MAX + 1;

/// The computer that the command runs on.
pub trait ProvisionHost {
    /// The key of this computer's user, in the form of the configuration. Made on first use.
    ///
    /// # Errors
    /// What is wrong with the key, in a line.
    fn admin_key(&mut self) -> Result<String, String>;

    /// The lines of a QR code for the screen.
    fn qr_code(&self, text: &str) -> Option<Vec<String>>;

    /// Reads at most `bytes` bytes of standard input.
    ///
    /// # Errors
    /// Standard input cannot be read.
    fn stdin(&mut self, bytes: usize) -> io::Result<Vec<u8>>;

    /// Prints a line that is not part of the answer.
    fn tell(&mut self, line: &str);

    /// The user's terminal, if there is one.
    fn terminal(&mut self) -> Option<Box<dyn WordsTerminal>>;
}

/// The node that the seed describes, and what the command wrote.
struct ProvisionReport<'a> {
    args: &'a ProvisionArgs,
    config: &'a NodeConfig,
    sets: Vec<String>,
    identity: Option<String>,
    uri: Option<String>,
    vault: Option<VaultId>,
    words: Option<SecretStr>,
    written: WrittenFiles,
    warnings: Vec<String>,
}

/// Runs the command, and prints its result to `out`, as JSON if `json`.
///
/// # Errors
/// See [`ProvisionError`].
pub fn run(
    args: &ProvisionArgs,
    json: bool,
    host: &mut dyn ProvisionHost,
    out: &mut dyn Write,
) -> Result<(), ProvisionError> {
    let form = args.form;
    // All mistakes in the options are found before words are made and shown.
    let to = target(args, json)?;
    if let Some(path) = to {
        form.check(path, args.force)?;
    }
    check_inputs(args)?;
    let base = base(args, host)?;
    let own_key = || host.admin_key().map_err(ProvisionError::Local);
    let SeedDocument { text, config } = document::build(args, &base, own_key)?;
    check_words(args, &config)?;
    let words = match config.vault.init {
        VaultInit::Provisioned => Some(words::obtain(args, host)?),
        _ => None,
    };
    let credentials = words::credentials(args, &config, host)?;
    let identity = words.as_ref().map(|words| identity(words, &config));
    let seed_key = wants_seed_key(form, &config).then(seed_key).transpose()?;
    let passphrase = SecretStr::empty();
    let (entropy, passphrase) = match &words {
        Some((entropy, passphrase)) => (Some(entropy), passphrase),
        None => (None, &passphrase),
    };
    let seed = NodeSeed {
        document: &text,
        words: entropy,
        passphrase,
        seed_key: seed_key.as_ref(),
        credentials: &credentials,
    };
    let identity = identity.transpose()?;
    let Some(path) = to else {
        let text = seed.text(form)?;
        if let Some(identity) = &identity {
            // The document is on standard output, so the key goes to the terminal.
            host.tell(&format!("the node's key: {identity}"));
        }
        warnings(&seed, form).iter().for_each(|it| host.tell(it));
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        return written.map_err(|error| ProvisionError::output(&error));
    };
    let uri = identity.as_ref().and_then(|key| uri(key, args, &config));
    let outcome = ProvisionReport {
        args,
        sets: text_names(&text),
        uri,
        identity,
        vault: seed_key.as_ref().map(SeedKey::vault),
        words: entropy.filter(|_| args.show_words).map(Entropy::phrase),
        warnings: warnings(&seed, form),
        written: seed.write(form, path, args.force)?,
        config: &config,
    };
    let printed = if json {
        writeln!(out, "{}", outcome.json())
    } else {
        outcome
            .lines(host)
            .iter()
            .try_for_each(|line| writeln!(out, "{line}"))
    };
    let printed = printed.and_then(|()| out.flush());
    printed.map_err(|error| ProvisionError::output(&error))
}

/// The output path. `None` for standard output.
fn target(args: &ProvisionArgs, json: bool) -> Result<Option<&Path>, ProvisionError> {
    // `-` as a name means standard output, just as it means standard input for what is read.
    let named = args.out.as_deref().filter(|path| path.as_os_str() != "-");
    if named.is_none() && !args.form.is_text() {
        return Err(ProvisionError::usage(format!(
            "the form {} is a binary file, which does not go to standard output: name it with --out FILE",
            args.form.name()
        )));
    }
    // Otherwise the document and the report would be mixed in one stream.
    if named.is_none() && (json || args.show_words) {
        return Err(ProvisionError::usage(
            "with --json or --show-words, name a file with --out: one answer goes to standard output",
        ));
    }
    Ok(named)
}

fn is_input(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// Refuses to read standard input twice.
fn check_inputs(args: &ProvisionArgs) -> Result<(), ProvisionError> {
    let files = [&args.config, &args.words_file, &args.passphrase_file];
    let inputs = files.into_iter().flatten().filter(|file| is_input(file));
    let credentials = args.credential.iter().filter(|it| it.ends_with("=-"));
    if inputs.count() + credentials.count() > 1 {
        return Err(ProvisionError::usage(
            "standard input is one file: name the others",
        ));
    }
    Ok(())
}

fn base(args: &ProvisionArgs, host: &mut dyn ProvisionHost) -> Result<String, ProvisionError> {
    let Some(file) = &args.config else {
        return Ok(String::new());
    };
    let name = file.display();
    let bytes = if is_input(file) {
        // Bounded, because standard input may never end.
        host.stdin(INPUT_BYTES_MAX)
    } else {
        std::fs::read(file)
    };
    let bytes =
        bytes.map_err(|error| ProvisionError::usage(format!("cannot read {name}: {error}")))?;
    String::from_utf8(bytes)
        .map_err(|_| ProvisionError::usage(format!("{name}: the document is not UTF-8 text")))
}

/// Refuses options about words that would have no effect.
fn check_words(args: &ProvisionArgs, config: &NodeConfig) -> Result<(), ProvisionError> {
    let given = args.words_file.is_some()
        || args.words_out.is_some()
        || args.passphrase_file.is_some()
        || args.show_words;
    if given && config.vault.init != VaultInit::Provisioned {
        return Err(ProvisionError::usage(
            "no words go with the seed unless --init is provisioned: leave --words-file, \
             --words-out, --passphrase-file and --show-words out",
        ));
    }
    if !args.words_to.is_empty() && config.vault.init != VaultInit::Generate {
        return Err(ProvisionError::usage(
            "--words-to is for words that the node makes: leave it out, or take --init generate",
        ));
    }
    Ok(())
}

/// The key that the node will have.
fn identity(
    (entropy, passphrase): &(Entropy, SecretStr),
    config: &NodeConfig,
) -> Result<String, ProvisionError> {
    let device = PathIndex::new(config.vault.device);
    let device = device.ok_or_else(|| ProvisionError::usage("vault.device is too high"))?;
    let vault = Vault::locked_as(device, None);
    vault.unlock(entropy, passphrase)?;
    let public = vault.signer(KeyPurpose::NodeIdentity)?.public();
    Ok(format!("ed25519:{}", HEXLOWER.encode(&public)))
}

/// Whether the configuration asks for a seed key. If it says nothing, a seed key is made for a
/// medium other than the disk that it protects.
fn wants_seed_key(form: SeedForm, config: &NodeConfig) -> bool {
    match (&config.vault.unlock[..], config.vault.init) {
        (_, VaultInit::Off) => false,
        ([], _) => form.stays_apart(),
        (slots, _) => slots.contains(&VaultUnlock::Provisioning),
    }
}

/// A key for a vault that does not exist yet. The node takes the vault's ID from it.
fn seed_key() -> Result<SeedKey, ProvisionError> {
    let mut bytes = [0; 16];
    let no_luck = |error| ProvisionError::Local(format!("no random bytes: {error}"));
    getrandom::fill(&mut bytes).map_err(no_luck)?;
    // Version 4 and variant 10 of RFC 9562.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = HEXLOWER.encode(&bytes);
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    let vault = parts.join("-").parse();
    let vault = vault.map_err(|()| ProvisionError::Local("no id for the vault".to_owned()))?;
    Ok(SeedKey::generate(vault)?)
}

/// The URI that the node's console will show, if its address is known.
fn uri(key: &str, args: &ProvisionArgs, config: &NodeConfig) -> Option<String> {
    let of_card = || {
        let cards = config.network.iter();
        let mut fixed = cards.filter(|card| card.method == LinkMethod::Static);
        let address = fixed.find_map(|card| card.addresses.first())?;
        address.split('/').next().map(str::to_owned)
    };
    let given = args.address.clone().or_else(|| config.node.domain.clone());
    let host = given.or_else(of_card)?;
    // An IPv6 address needs brackets before a port (RFC 3986, 3.2.2). A text with a dot is a name
    // or an IPv4 address, perhaps with a port.
    let is_bare_v6 = host.contains(':') && !host.contains(['[', '.']);
    let host = if is_bare_v6 {
        format!("[{host}]")
    } else {
        host
    };
    // A port that the administrator gave with the host wins over the configured port.
    let has_port = host
        .rsplit_once(':')
        .is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    let authority = if has_port && !is_bare_v6 {
        host
    } else {
        format!("{host}:{}", config.listen.port)
    };
    Some(format!("alknet:{key}@{authority}"))
}

/// Names of the document's tables and keys.
fn text_names(text: &str) -> Vec<String> {
    let document: Result<toml_edit::DocumentMut, _> = text.parse();
    let names = |it: toml_edit::DocumentMut| it.iter().map(|(name, _)| name.to_owned()).collect();
    document.map(names).unwrap_or_default()
}

/// What the owner, who keeps the seed, must know.
fn warnings(seed: &NodeSeed<'_>, form: SeedForm) -> Vec<String> {
    let mut warnings = Vec::new();
    if seed.words.is_some() {
        let what = match form {
            SeedForm::Cmdline => {
                "the words stand in the boot loader's configuration, and everything on the node can \
                 read them until the word is taken out of it"
            }
            SeedForm::FwCfg | SeedForm::Smbios => {
                "the node cannot erase the words from the hypervisor's configuration: take them out \
                 after its first start"
            }
            SeedForm::NocloudIso => {
                "the node cannot erase the words from a CD: destroy it after its first start; --form \
                 nocloud-fat can be erased"
            }
            SeedForm::Console | SeedForm::Text => {
                "the words are in it: its reader has the node; destroy it after its first start"
            }
            SeedForm::Esp | SeedForm::NocloudFat => {
                "the words are in it until the node's first start, which erases them; flash memory may \
                 keep a copy"
            }
        };
        warnings.push(what.to_owned());
    }
    if !seed.credentials.is_empty() {
        warnings.push(
            "the credentials are in it until the node's first start, which erases them where it can: not \
             on a CD, in the hypervisor's configuration or on a command line"
                .to_owned(),
        );
    }
    if seed.seed_key.is_some() && !form.stays_apart() {
        warnings.push(
            "the seed key is not on a medium of its own: a copy of the disk, or of the line, has \
             what opens the vault"
                .to_owned(),
        );
    }
    warnings
}

impl ProvisionReport<'_> {
    fn json(&self) -> serde_json::Value {
        let files: Vec<_> = self
            .written
            .paths
            .iter()
            .map(|it| it.to_string_lossy())
            .collect();
        let mut answer = json!({
            "form": self.args.form.name(),
            "files": files,
            "usage": self.written.usage,
            "sets": self.sets,
            "admin_keys": self.config.node.admin_keys,
            "init": self.config.vault.init,
            "unlock": self.config.vault.unlock,
            "device": self.config.vault.device,
            "identity": self.identity,
            "uri": self.uri,
            "vault": self.vault.map(|vault| vault.to_string()),
            "warnings": self.warnings,
        });
        if let Some(words) = &self.words {
            answer["words"] = words.expose().into();
        }
        answer
    }

    fn lines(&self, host: &dyn ProvisionHost) -> Vec<String> {
        let mut lines = Vec::new();
        let mut tell = |what: &str, text: String| lines.push(format!("{what:<9} {text}"));
        if let Some(words) = &self.words {
            tell("words", words.expose().to_owned());
        }
        match &self.identity {
            Some(identity) => tell("node", identity.clone()),
            None => tell(
                "node",
                "its key is made with its words, at its first start".to_owned(),
            ),
        }
        for key in &self.config.node.admin_keys {
            tell("admin", key.clone());
        }
        tell("sets", self.sets.join(", "));
        for path in &self.written.paths {
            tell("written", path.display().to_string());
        }
        for text in &self.written.usage {
            tell("use", text.clone());
        }
        for text in &self.warnings {
            tell("warning", text.clone());
        }
        if let Some(uri) = &self.uri {
            tell("enrol", uri.clone());
            lines.extend(host.qr_code(uri).unwrap_or_default());
        } else if self.identity.is_some() {
            tell(
                "enrol",
                "the node's console shows the code; --address HOST makes it here".to_owned(),
            );
        }
        lines
    }
}

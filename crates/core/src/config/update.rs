//! `[update]`: whose signatures an update of the appliance needs, and when the machine updates by itself.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dial::PeerAddr;

use super::error::quote;
use super::read::{ConfigDiagnostics, ConfigTable, ConfigValue};
use super::sections::each;
use super::values::ConfigDiagnostic;

/// Most keys that can sign updates: the most that a bundle's root document can name.
const KEYS_MAX: usize = 64;
/// Longest address of a channel's repository, in bytes.
const URL_BYTES_MAX: usize = 512;
/// Longest jitter: a day, so that a machine that updates at night still does so every night.
const JITTER_SECONDS_MAX: u32 = 24 * 3600;
/// The form of a window, for the schema.
const WINDOW_PATTERN: &str = "^([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]$";
/// Minutes of a day.
const DAY_MINUTES: u16 = 24 * 60;

/// `[update]`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct UpdateSection {
    /// The owner's keys, `ed25519:<64 hex>`. If there are any, the machine accepts no update that the release keys alone
    /// have signed.
    #[schemars(length(max = 64), inner(regex(pattern = r"^ed25519:[0-9a-f]{64}$")))]
    pub keys: Vec<String>,
    /// How many of these keys have to sign.
    #[schemars(range(min = 1, max = 64))]
    pub threshold: u32,
    /// Where the channels are: the bundle of a channel is `URL/CHANNEL/bundle.tar`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^https://[^/?#@]+(/[^?#]*)?$"))]
    pub url: Option<String>,
    /// The channel that the machine follows.
    pub channel: UpdateChannel,
    /// What the machine does by itself with a newer version of its channel.
    pub auto: AutoUpdate,
    /// When the machine may restart by itself for an update; at any time where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("pattern" = WINDOW_PATTERN))]
    pub window: Option<UpdateWindow>,
    /// The longest time by which the machine is later than others. Each machine has its own part of it.
    #[schemars(with = "String", extend("pattern" = "^[0-9]{1,5}[smh]$"))]
    pub jitter: UpdateJitter,
}

impl Default for UpdateSection {
    fn default() -> Self {
        Self {
            keys: Vec::new(),
            threshold: 1,
            url: None,
            channel: UpdateChannel::default(),
            auto: AutoUpdate::default(),
            window: None,
            jitter: UpdateJitter::default(),
        }
    }
}

impl UpdateSection {
    /// The address of the channel's bundle, if the section has an address.
    ///
    /// ```
    /// use alknet_core::config::{UpdateChannel, UpdateSection};
    ///
    /// let section = UpdateSection {
    ///     url: Some("https://updates.example.org".to_owned()),
    ///     channel: UpdateChannel::Beta,
    ///     ..UpdateSection::default()
    /// };
    /// let bundle = section.bundle_url();
    /// assert_eq!(bundle.as_deref(), Some("https://updates.example.org/beta/bundle.tar"));
    /// ```
    #[must_use]
    pub fn bundle_url(&self) -> Option<String> {
        self.channel_url(self.channel)
    }

    /// The address of the bundle of another channel, if the section has an address.
    #[must_use]
    pub fn channel_url(&self, channel: UpdateChannel) -> Option<String> {
        let base = self.url.as_deref()?.trim_end_matches('/');
        Some(format!("{base}/{}/bundle.tar", channel.name()))
    }

    /// The part of a refused document that still counts: the owner's keys. Without them the machine would accept what
    /// the release keys alone have signed.
    #[must_use]
    pub(super) fn salvaged(self) -> Self {
        Self {
            keys: self.keys,
            threshold: self.threshold,
            ..Self::default()
        }
    }
}

/// A row of releases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum UpdateChannel {
    /// Releases that are to be tried before they become stable.
    Beta,
    /// Releases for every machine.
    #[default]
    Stable,
}

impl UpdateChannel {
    /// The name, which is also the channel's folder below `update.url`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Beta => "beta",
            Self::Stable => "stable",
        }
    }
}

/// What a machine does by itself with a newer version of its channel.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum AutoUpdate {
    /// The machine does nothing by itself.
    #[default]
    Off,
    /// Writes it to the boot slot that does not run.
    Stage,
    /// Writes it there and starts it.
    Apply,
}

/// The hours in which a machine may restart for an update, every day, in UTC: `02:00-04:00`. The end is not part of it;
/// a window whose end is before its begin goes over midnight.
///
/// ```
/// use alknet_core::config::UpdateWindow;
///
/// let night: UpdateWindow = "23:00-01:30".parse()?;
/// assert_eq!((night.begin_minute(), night.minutes()), (23 * 60, 150));
/// # Ok::<(), alknet_core::config::InvalidUpdateWindow>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpdateWindow {
    begin: u16,
    minutes: u16,
}

impl UpdateWindow {
    /// The begin, in minutes after midnight.
    #[must_use]
    pub const fn begin_minute(self) -> u16 {
        self.begin
    }

    /// The length in minutes, at least one.
    #[must_use]
    pub const fn minutes(self) -> u16 {
        self.minutes
    }
}

/// A text is no [`UpdateWindow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write two times of day in UTC, like 02:00-04:00")]
pub struct InvalidUpdateWindow;

impl FromStr for UpdateWindow {
    type Err = InvalidUpdateWindow;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (begin, end) = text.split_once('-').ok_or(InvalidUpdateWindow)?;
        let begin = minute_of_day(begin).ok_or(InvalidUpdateWindow)?;
        let end = minute_of_day(end).ok_or(InvalidUpdateWindow)?;
        let minutes = (end + DAY_MINUTES - begin) % DAY_MINUTES;
        match minutes {
            // It could mean no time at all, or the whole day.
            0 => Err(InvalidUpdateWindow),
            minutes => Ok(Self { begin, minutes }),
        }
    }
}

fn minute_of_day(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str, below: u16| {
        // `parse` would accept a sign.
        let is_plain = text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
        let number = is_plain.then(|| text.parse::<u16>().ok()).flatten()?;
        (number < below).then_some(number)
    };
    Some(number(hour, 24)? * 60 + number(minute, 60)?)
}

impl fmt::Display for UpdateWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = (self.begin + self.minutes) % DAY_MINUTES;
        let time = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{}", time(self.begin), time(end))
    }
}

impl TryFrom<String> for UpdateWindow {
    type Error = InvalidUpdateWindow;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<UpdateWindow> for String {
    fn from(window: UpdateWindow) -> Self {
        window.to_string()
    }
}

/// A time of at most a day: `90s`, `30m` or `12h`.
///
/// ```
/// use alknet_core::config::UpdateJitter;
///
/// let jitter: UpdateJitter = "30m".parse()?;
/// assert_eq!(jitter.seconds(), 1800);
/// assert!("25h".parse::<UpdateJitter>().is_err());
/// # Ok::<(), alknet_core::config::InvalidUpdateJitter>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UpdateJitter {
    seconds: u32,
}

impl UpdateJitter {
    /// The time in seconds.
    #[must_use]
    pub const fn seconds(self) -> u32 {
        self.seconds
    }
}

impl Default for UpdateJitter {
    fn default() -> Self {
        Self { seconds: 3600 }
    }
}

/// A text is no [`UpdateJitter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write 0s to 24h, like 30m")]
pub struct InvalidUpdateJitter;

impl FromStr for UpdateJitter {
    type Err = InvalidUpdateJitter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim_end_matches(['s', 'm', 'h']);
        let unit = match &text[digits.len()..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(InvalidUpdateJitter),
        };
        let is_plain =
            (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let number = is_plain.then(|| digits.parse::<u32>().ok()).flatten();
        let seconds = number.ok_or(InvalidUpdateJitter)? * unit;
        match seconds <= JITTER_SECONDS_MAX {
            true => Ok(Self { seconds }),
            false => Err(InvalidUpdateJitter),
        }
    }
}

impl fmt::Display for UpdateJitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.seconds;
        match (seconds % 3600, seconds % 60) {
            (0, _) if seconds > 0 => write!(f, "{}h", seconds / 3600),
            (_, 0) if seconds > 0 => write!(f, "{}m", seconds / 60),
            _ => write!(f, "{seconds}s"),
        }
    }
}

impl TryFrom<String> for UpdateJitter {
    type Error = InvalidUpdateJitter;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<UpdateJitter> for String {
    fn from(jitter: UpdateJitter) -> Self {
        jitter.to_string()
    }
}

pub(super) fn section(
    mut section: ConfigTable<'_, '_>,
    notes: &mut ConfigDiagnostics<'_>,
) -> UpdateSection {
    let standard = UpdateSection::default();
    let keys = section.list("keys", notes);
    let threshold = section.key("threshold");
    let url = section.key("url");
    let channel = section.key("channel");
    let auto = section.key("auto");
    let window = section.key("window");
    let jitter = section.key("jitter");
    section.finish(notes);
    let keys = owner_keys(&keys, notes);
    let counted = threshold.as_ref().and_then(|value| {
        let most = u32::try_from(KEYS_MAX).unwrap_or(u32::MAX);
        value.number(1..=most, notes)
    });
    // Fewer keys could never sign anything. Without keys the release keys count, with a threshold of their own.
    if let (Some(value), Some(number)) = (&threshold, counted)
        && number as usize > keys.len().max(1)
    {
        let what = format!(
            "{number} signatures are asked for, and update.keys has {} keys",
            keys.len()
        );
        value.report(notes, what, "list more keys, or ask for fewer signatures");
    }
    let no_url = url.is_none();
    let url = url.and_then(|value| value.parsed(notes, repository));
    let automatic = auto
        .as_ref()
        .and_then(|value| value.parsed(notes, auto_update));
    if let Some(value) = auto
        && no_url
        && automatic.is_some_and(|auto| auto != AutoUpdate::Off)
    {
        let what = "the machine has no channel to look at";
        value.report(notes, what, "add url = \"https://updates.example.org\"");
    }
    UpdateSection {
        keys,
        threshold: counted.unwrap_or(standard.threshold),
        url,
        channel: channel
            .and_then(|value| value.parsed(notes, update_channel))
            .unwrap_or_default(),
        auto: automatic.unwrap_or_default(),
        window: window.and_then(|value| value.parsed(notes, update_window)),
        jitter: jitter
            .and_then(|value| value.parsed(notes, update_jitter))
            .unwrap_or_default(),
    }
}

fn owner_keys(entries: &[ConfigValue<'_, '_>], notes: &mut ConfigDiagnostics<'_>) -> Vec<String> {
    if let Some(beyond) = entries.get(KEYS_MAX) {
        let what = format!("there are more than {KEYS_MAX} keys");
        beyond.report(notes, what, "leave some out");
    }
    let keys = each(entries, owner_key, notes);
    for (n, entry) in entries.iter().enumerate() {
        let text = entry.text(notes);
        let earlier = entries[..n].iter().filter_map(|one| one.text(notes));
        // A key counts once, so that one holder cannot reach the threshold alone.
        if text.is_some() && earlier.map(Some).any(|one| one == text) {
            entry.report(notes, "this key is listed already", "keep one of the two");
        }
    }
    keys
}

fn owner_key(text: &str) -> Result<String, ConfigDiagnostic> {
    let digits = text.strip_prefix("ed25519:").unwrap_or_default();
    let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    match digits.len() == 64 && digits.bytes().all(is_hex) {
        true => Ok(text.to_owned()),
        false => Err(ConfigDiagnostic::new(
            format!("{} is no key that signs updates", quote(text)),
            "write ed25519:<64 hex>, digits in lower case, as 'alknet vault key show image-signing' prints it",
        )),
    }
}

fn repository(text: &str) -> Result<String, ConfigDiagnostic> {
    let rest = text.strip_prefix("https://");
    let is_plain = |rest: &&str| {
        let plain = |c: char| c.is_ascii_graphic() && !"?#\\\"<>".contains(c);
        text.len() <= URL_BYTES_MAX && rest.chars().all(plain)
    };
    let host = rest.filter(is_plain).map(|rest| rest.split('/').next());
    let host = host
        .flatten()
        .and_then(|host| host.parse::<PeerAddr>().ok());
    match host.is_some_and(|host| host.pins.is_empty()) {
        true => Ok(text.to_owned()),
        false => Err(ConfigDiagnostic::new(
            format!("{} is no address of a repository", quote(text)),
            "write https://host/path, without a user and a query",
        )),
    }
}

fn update_channel(text: &str) -> Result<UpdateChannel, ConfigDiagnostic> {
    match text {
        "beta" => Ok(UpdateChannel::Beta),
        "stable" => Ok(UpdateChannel::Stable),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no channel", quote(text)),
            "write \"stable\" or \"beta\"",
        )),
    }
}

fn auto_update(text: &str) -> Result<AutoUpdate, ConfigDiagnostic> {
    match text {
        "apply" => Ok(AutoUpdate::Apply),
        "off" => Ok(AutoUpdate::Off),
        "stage" => Ok(AutoUpdate::Stage),
        _ => Err(ConfigDiagnostic::new(
            format!("{} is no way of updating", quote(text)),
            "write \"off\", \"stage\" or \"apply\"",
        )),
    }
}

fn update_window(text: &str) -> Result<UpdateWindow, ConfigDiagnostic> {
    text.parse().map_err(|error: InvalidUpdateWindow| {
        ConfigDiagnostic::new(format!("{} is no window", quote(text)), error.to_string())
    })
}

fn update_jitter(text: &str) -> Result<UpdateJitter, ConfigDiagnostic> {
    text.parse().map_err(|error: InvalidUpdateJitter| {
        ConfigDiagnostic::new(
            format!("{} is no time up to a day", quote(text)),
            error.to_string(),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::NodeConfig;
    use super::*;

    #[test]
    fn a_window_goes_over_midnight_and_is_never_empty() {
        let window: UpdateWindow = "23:30-00:15".parse().expect("a window");
        assert_eq!((window.begin_minute(), window.minutes()), (1410, 45));
        assert_eq!(window.to_string(), "23:30-00:15");
        for wrong in [
            "",
            "02:00",
            "2:00-4:00",
            "24:00-01:00",
            "02:60-03:00",
            "02:00-02:00",
            "+2:00-04:00",
        ] {
            assert_eq!(
                wrong.parse::<UpdateWindow>(),
                Err(InvalidUpdateWindow),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_jitter_has_one_unit_and_at_most_a_day() {
        for (text, seconds, shown) in [
            ("0s", 0, "0s"),
            ("90s", 90, "90s"),
            ("60m", 3600, "1h"),
            ("24h", 86_400, "24h"),
        ] {
            let jitter: UpdateJitter = text.parse().expect(text);
            assert_eq!(
                (jitter.seconds(), jitter.to_string().as_str()),
                (seconds, shown)
            );
        }
        for wrong in ["", "s", "30", "25h", "1d", "-1s", "1.5h", "99999h", "3mm"] {
            assert_eq!(
                wrong.parse::<UpdateJitter>(),
                Err(InvalidUpdateJitter),
                "{wrong}"
            );
        }
    }

    #[test]
    fn every_mistake_of_the_section_is_named() {
        let key = format!("ed25519:{}", "01".repeat(32));
        let twice = format!("keys = [\"{key}\", \"{key}\"]");
        let many = format!("keys = [\"{key}\"]\nthreshold = 2");
        for (document, word) in [
            ("keys = [\"spki:00\"]", "image-signing"),
            (&twice, "listed already"),
            ("threshold = 0", "1 to 64"),
            ("threshold = 2", "list more keys"),
            (&many, "update.keys has 1 keys"),
            ("url = \"http://a.example\"", "https://host/path"),
            ("url = \"https://me@a.example\"", "https://host/path"),
            ("url = \"https://a.example/?a\"", "https://host/path"),
            ("channel = \"nightly\"", "stable"),
            ("auto = \"on\"", "off"),
            ("auto = \"stage\"", "update.auto"),
            ("window = \"at night\"", "02:00-04:00"),
            ("jitter = \"2d\"", "0s to 24h"),
            ("jiter = \"2h\"", "did you mean 'jitter'?"),
        ] {
            let document = format!("[update]\n{document}\n");
            let errors = NodeConfig::parse(document.as_bytes()).expect_err(&document);
            assert_eq!(errors.len(), 1, "{document}: {errors:#?}");
            assert!(errors[0].to_string().contains(word), "{}", errors[0]);
        }
    }

    #[test]
    fn a_channel_has_its_bundle_below_the_address() {
        let section = UpdateSection {
            url: Some("https://updates.example.org/alknet/".to_owned()),
            channel: UpdateChannel::Beta,
            ..UpdateSection::default()
        };
        let bundle = "https://updates.example.org/alknet/beta/bundle.tar";
        assert_eq!(section.bundle_url().as_deref(), Some(bundle));
        let stable = section.channel_url(UpdateChannel::Stable);
        assert_eq!(stable, Some(bundle.replace("/beta/", "/stable/")));
        assert_eq!(UpdateSection::default().bundle_url(), None);
    }

    /// Otherwise a mistake elsewhere would let the release keys in.
    #[test]
    fn a_refused_document_still_says_whose_signatures_count() {
        let keys = ["01", "02"].map(|byte| format!("ed25519:{}", byte.repeat(32)));
        let document = format!(
            "[update]\nkeys = [\"{}\", \"{}\"]\nthreshold = 2\nauto = \"apply\"\nurl = \"https://a.example\"\n\
             [node]\nnam = \"x\"\n",
            keys[0], keys[1]
        );
        let salvaged = NodeConfig::salvage(document.as_bytes()).update;
        assert_eq!(
            (salvaged.keys.as_slice(), salvaged.threshold),
            (&keys[..], 2)
        );
        assert_eq!((salvaged.auto, salvaged.url), (AutoUpdate::Off, None));
    }
}

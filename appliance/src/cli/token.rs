//! `alknet token`: bearer tokens of a node that runs; and with `add --offline` one for a configuration, for which no
//! node is asked.

use alknet_call::ErrorCode;
use alknet_core::{AuthToken, KeyId};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::call::call_error;
use super::duration::{self, Lifetime};
use super::name_hint::name_list;
use super::query::{RowQuery, ask_or_explain, list, show_row, text, warn};
use super::row_args::{NodeRowArgs, RowWord};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, dial, output};

/// The operation that lists the tokens.
const LIST: &str = "token/list";
/// What tokens begin with.
const TOKEN_PREFIX: &str = "alk_";

/// The verbs below `alknet token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenVerb {
    /// Make a token on a running node, and print it once; or with --offline one for the configuration of a node.
    #[command(
        alias = "make",
        override_usage = "alknet token add [OPTIONS] --scope <SCOPE> [NODE]\n       \
alknet token add --offline",
        after_help = "Examples:\n  alknet token add ed25519:…@192.0.2.7:443 --scope metrics:read \
--expires 90d --note 'the dashboard in the hall'\n  \
alknet token add attic --scope node:read --scope peer:list --expires never\n  \
alknet token add attic --scope fs:read --resource fs=docs --json | jq -r .token\n  \
alknet token add --offline\n\n\
Standard output has the token alone, and standard error everything else."
    )]
    Add(MakeArgs),
    /// List the tokens of a node: names, scopes, ends, makers and last uses.
    #[command(
        after_help = "Examples:\n  alknet token list ed25519:…@192.0.2.7:443\n  \
alknet token list attic --json"
    )]
    List(NodeArgs),
    /// As 'alknet token add --offline'.
    #[command(hide = true, after_help = "Example:\n  alknet token new --json")]
    New,
    /// Revoke a token: the node closes the token's connections and sessions within a second.
    #[command(
        alias = "revoke",
        override_usage = "alknet token remove [OPTIONS] [NODE] <KEY_ID>",
        after_help = "Example:\n  alknet token remove ed25519:…@192.0.2.7:443 k3v9a2mb"
    )]
    Remove(NodeRowArgs<TokenRow>),
    /// Show one token of a node, without its secret.
    #[command(
        override_usage = "alknet token show [OPTIONS] [NODE] <KEY_ID>",
        after_help = "Example:\n  alknet token show attic k3v9a2mb"
    )]
    Show(NodeRowArgs<TokenRow>),
}

/// A token of a node.
pub(crate) enum TokenRow {}

impl RowWord for TokenRow {
    const NAME: &'static str = "KEY_ID";
    const HELP: &'static str = "The name of the token: the eight characters behind alk_";
    const FROM: &'static str = "the 8 characters of 'alknet token list'";
}

/// Arguments of `alknet token add`.
#[derive(Debug, Args)]
pub(crate) struct MakeArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// A scope of the token, at most your own. Repeat the option for more.
    #[arg(long, required_unless_present = "offline", value_name = "SCOPE")]
    scope: Vec<String>,
    /// Ask no node: make the token on this computer, and print its lines for the configuration of a node, which say
    /// what it may do.
    #[arg(long, conflicts_with_all = ["node", "peer_of_hub", "via", "scope", "resource", "expires", "note"])]
    offline: bool,
    /// A resource of the token, KIND=NAME. Repeat the option for more.
    #[arg(long, value_name = "KIND=NAME", value_parser = resource)]
    resource: Vec<(String, String)>,
    /// How long the token is valid: 90s, 30m, 12h, 30d, a number of seconds, or never.
    #[arg(long, value_name = "TIME", default_value = "90d", value_parser = duration::lifetime)]
    expires: Lifetime,
    /// A note that 'alknet token list' shows.
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// Runs one of them.
pub(crate) fn run(verb: TokenVerb, json: bool) -> Result<CommandExit, CommandError> {
    match verb {
        TokenVerb::Add(args) if args.offline => new(json),
        TokenVerb::Add(args) => make(&args, json),
        TokenVerb::List(node) => list(&node, LIST, json, lines),
        TokenVerb::New => new(json),
        TokenVerb::Remove(row) => {
            let (node, word) = row.arranged()?;
            remove(&node, id_of_token(&word), json)
        }
        TokenVerb::Show(row) => {
            let (node, word) = row.arranged()?;
            let key_id = id_of_token(&word);
            let is_wanted = |row: &Value| row["key_id"] == key_id;
            let query = RowQuery {
                operation: LIST,
                list: "tokens",
                what: "token",
                name: key_id,
                lists: "alknet token list",
            };
            show_row(&node, &query, json, is_wanted, lines)
        }
    }
}

/// The id of a token. A user may give the whole token in its place: no error repeats more of it than the id.
fn id_of_token(word: &str) -> &str {
    let Some(rest) = word.strip_prefix(TOKEN_PREFIX) else {
        return word;
    };
    rest.split_once('_').map_or(rest, |(key_id, _)| key_id)
}

fn remove(node: &NodeArgs, key_id: &str, json: bool) -> Result<CommandExit, CommandError> {
    let input = json!({ "key_id": key_id });
    let told = |_: &Value| vec![format!("{key_id} is no token any more")];
    let of_revoke = ("token/revoke", &input);
    ask_or_explain(node, of_revoke, json, told, async |node, error| {
        // The schema of the operation refuses a word that is no id, such as the name of a peer.
        let is_no_id = error.code == ErrorCode::InvalidInput && key_id.parse::<KeyId>().is_err();
        if error.code != ErrorCode::NotFound && !is_no_id {
            return call_error(error);
        }
        // A node that cannot be asked for its tokens has said why: it may be a hub without the peer that is meant.
        match node.call(LIST, &Value::Null).await {
            Ok(listed) => no_token(key_id, listed.value()),
            Err(_) => call_error(error),
        }
    })
}

/// The error for a token that the node does not have, with the ids of those that it has.
fn no_token(key_id: &str, listed: &Value) -> CommandError {
    let tokens = listed["tokens"].as_array().into_iter().flatten();
    let ids = name_list(tokens.map(|one| text(&one["key_id"])));
    let has = match ids.is_empty() {
        true => "no tokens".to_owned(),
        false => output::one_line(&ids).into_owned(),
    };
    let message = format!(
        "there is no token '{key_id}': the node has {has}; 'alknet token list' says whose each is"
    );
    CommandError::new(CommandExit::Failed, ErrorCode::NotFound.name(), message)
}

fn make(args: &MakeArgs, json: bool) -> Result<CommandExit, CommandError> {
    let mut resources = serde_json::Map::new();
    for (kind, name) in &args.resource {
        let held = resources.entry(kind.clone()).or_insert_with(|| json!([]));
        if let Value::Array(held) = held {
            held.push(name.as_str().into());
        }
    }
    let input = json!({
        "scopes": args.scope,
        "resources": resources,
        "ttl_s": args.expires.seconds(),
        "note": args.note,
    });
    let route = args.node.route()?;
    dial::reached(&route, &args.node.dial, async |node| {
        let answer = node.call("token/make", &input).await.map_err(call_error)?;
        let answer = answer.value();
        if json {
            output::json_line(answer)?;
            return Ok(CommandExit::Ok);
        }
        // The token alone is the result: a script takes it as it is.
        output::line(text(&answer["token"]))?;
        let end = match answer["expires"].as_str() {
            Some(end) => format!("good until {}", output::one_line(end)),
            None => "good until it is revoked".to_owned(),
        };
        output::note(&format!(
            "Not shown again; {end}. Take it back with 'alknet token remove {} {}'.",
            route.as_argument(),
            output::one_line(text(&answer["key_id"])),
        ));
        warn(answer);
        Ok(CommandExit::Ok)
    })
}

/// Makes one. It is shown here and nowhere else.
fn new(json: bool) -> Result<CommandExit, CommandError> {
    let token = AuthToken::generate().map_err(CommandError::local)?;
    let hash = token.hash().map_err(CommandError::local)?;
    let entry = hash.to_string();
    let sha256 = &entry[hash.key_id.as_str().len() + 1..];
    if json {
        output::json_line(&json!({
            "token": token.expose(),
            "key_id": hash.key_id,
            "sha256": sha256,
            "hash": entry,
        }))?;
        return Ok(CommandExit::Ok);
    }
    // The token alone is the result: a script takes it as it is.
    output::line(token.expose())?;
    output::note(&format!(
        "Give the token to the peer or program it is for; it is not shown again.\n\
         The configuration of the node gets one of these, for a peer or for a program:\n\n\
         [[peers]]\ntokens = [\"{entry}\"]\n\n\
         [[api_keys]]\nkey_id = \"{}\"\nsha256 = \"{sha256}\"",
        hash.key_id
    ));
    Ok(CommandExit::Ok)
}

fn lines(answer: &Value) -> Vec<String> {
    let tokens = answer["tokens"].as_array().map_or(&[][..], Vec::as_slice);
    if tokens.is_empty() {
        return vec!["there are no tokens".to_owned()];
    }
    let width = output::column(tokens.iter().map(|one| text(&one["holder"])));
    tokens.iter().map(|one| line(one, width)).collect()
}

fn line(one: &Value, width: usize) -> String {
    let scopes = one["scopes"].as_array().into_iter().flatten();
    let scopes: Vec<_> = scopes.filter_map(Value::as_str).collect();
    let end = match (one["expires"].as_str(), one["expired"] == true) {
        (Some(end), true) => format!("EXPIRED {end}"),
        (Some(end), false) => format!("until {end}"),
        (None, _) => "does not end".to_owned(),
    };
    let used = one["last_used"].as_str();
    let used = used.map_or_else(|| "not used".to_owned(), |day| format!("used {day}"));
    let mut line = format!(
        "{}  {:width$}  {:6}  {end:28}  {used:15}  {}",
        text(&one["key_id"]),
        text(&one["holder"]),
        text(&one["source"]),
        scopes.join(" ")
    );
    for (word, key) in [("by", "created_by"), ("for", "note")] {
        if let Some(told) = one[key].as_str() {
            // A note is free text that its maker typed: without control characters it cannot move
            // the cursor here.
            let told: String = told.chars().filter(|c| !c.is_control()).collect();
            line.push_str(&format!("  {word} {told}"));
        }
    }
    line.trim_end().to_owned()
}

fn resource(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=');
    let pair = pair.filter(|(kind, name)| !kind.is_empty() && !name.is_empty());
    pair.map(|(kind, name)| (kind.to_owned(), name.to_owned()))
        .ok_or_else(|| format!("'{text}' is no resource: write KIND=NAME"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct TokenTestCli {
        #[command(subcommand)]
        verb: TokenVerb,
    }

    #[test]
    fn a_token_for_a_configuration_takes_nothing_of_a_node() {
        let read = |line: &str| TokenTestCli::try_parse_from(line.split(' ')).map(|cli| cli.verb);
        let offline = read("token add --offline").expect("it needs no scope");
        assert!(matches!(offline, TokenVerb::Add(args) if args.offline));
        let online = read("token add attic --scope a:b").expect("a node and a scope");
        assert!(matches!(online, TokenVerb::Add(args) if !args.offline));
        assert!(matches!(read("token new"), Ok(TokenVerb::New)));
        for line in [
            "token add",
            "token add --offline attic",
            "token add --offline --scope a:b",
            "token add --offline --expires 1h",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_whole_token_stands_for_its_id() {
        for (word, key_id) in [
            ("k3v9a2mb", "k3v9a2mb"),
            ("alk_k3v9a2mb_secret_too", "k3v9a2mb"),
            ("alk_k3v9a2mb", "k3v9a2mb"),
            ("bob", "bob"),
        ] {
            assert_eq!(id_of_token(word), key_id, "{word}");
        }
    }

    #[test]
    fn a_token_that_is_not_there_is_answered_with_those_that_are() {
        let one = json!({ "tokens": [{ "key_id": "k3v9a2mb" }] });
        let said = no_token("bob", &one).message;
        assert!(
            said.starts_with("there is no token 'bob': the node has k3v9a2mb; "),
            "{said}"
        );
        let none = no_token("bob", &json!({ "tokens": [] })).message;
        assert!(none.contains("the node has no tokens"), "{none}");
    }

    #[test]
    fn resources_are_read() {
        let docs = ("fs".to_owned(), "a=b".to_owned());
        assert_eq!(resource("fs=a=b"), Ok(docs));
        for bad in ["", "fs", "=a", "fs="] {
            assert!(resource(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_list_reads_well() {
        let answer = json!({ "tokens": [
            { "key_id": "k3v9a2mb", "holder": "key:k3v9a2mb", "source": "store",
              "scopes": ["metrics:read"], "expires": "2030-01-01T00:00:00Z", "created_by": "admin",
              "note": "the \u{1b}[31mhall", "last_used": "2029-12-31" },
            { "key_id": "aaaaaaaa", "holder": "edge", "source": "config", "scopes": ["a", "b"] },
            { "key_id": "bbbbbbbb", "holder": "old", "source": "store", "scopes": ["a"],
              "expires": "2020-01-01T00:00:00Z", "expired": true },
        ] });
        let shown = lines(&answer);
        assert_eq!(
            shown[0],
            "k3v9a2mb  key:k3v9a2mb  store   until 2030-01-01T00:00:00Z    used 2029-12-31  \
             metrics:read  by admin  for the [31mhall"
        );
        assert!(shown[1].contains("does not end") && shown[1].ends_with("not used         a b"));
        assert!(
            shown[2].contains("  EXPIRED 2020-01-01T00:00:00Z  "),
            "{}",
            shown[2]
        );
        assert_eq!(lines(&json!({})), ["there are no tokens"]);
    }
}

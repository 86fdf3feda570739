//! `alknet ops`: the operations of a node.

use alknet_call::{ErrorCode, OperationSummary};
use clap::{Args, Command, Subcommand};
use serde_json::json;

use super::call::{
    call_error, check_operation, is_operation, meant_operation, no_operation, show,
    unknown_operation,
};
use super::promotion::{self, PromotionVerb};
use super::target::NodeArgs;
use super::{CommandError, CommandExit, output};

/// Least similarity (Jaro) at which a verb is offered for a word: the one of clap, for verbs without NODE.
const SIMILAR_MIN: f64 = 0.7;

/// Arguments of `alknet ops`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    override_usage = "alknet ops [OPTIONS] [NODE] [OPERATION]\n       alknet ops <COMMAND>"
)]
pub(crate) struct OpsArgs {
    #[command(subcommand)]
    verb: Option<OpsVerb>,
    #[command(flatten)]
    what: ShowOperationArgs,
}

/// The verbs below `alknet ops`.
#[derive(Debug, Subcommand)]
enum OpsVerb {
    /// List the operations of a node that you may call.
    #[command(
        after_help = "Examples:\n  alknet ops list\n  alknet ops list attic\n  \
alknet ops list attic --peer kitchen"
    )]
    List(NodeArgs),
    /// Show an operation: its input, its output, its errors and its scopes.
    #[command(
        after_help = "Examples:\n  alknet ops show node/info\n  alknet ops show attic node/info",
        override_usage = "alknet ops show [OPTIONS] [NODE] <OPERATION>"
    )]
    Show(ShowOperationArgs),
    #[command(flatten)]
    Promotion(PromotionVerb),
}

/// Which operation of which node.
#[derive(Debug, Args)]
pub(crate) struct ShowOperationArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// The operation to show, for example node/info.
    operation: Option<String>,
}

impl ShowOperationArgs {
    /// With each word in its place: a single word with a '/' is the operation.
    fn arranged(mut self) -> Self {
        if self.operation.is_none() {
            // With one word it is the operation where it looks like one.
            self.operation = self.node.node.take_if(|word| is_operation(word));
        }
        self
    }

    /// With the verb that NODE may have been meant as, for the error if there is no such node.
    fn meant_as_verb(mut self) -> Self {
        let verb = self.node.node.as_deref().and_then(nearest_verb);
        self.node.meant = verb.map(|verb| format!("did you mean 'alknet ops {verb}'?"));
        self
    }
}

/// `alknet ops`
pub(crate) fn run(args: OpsArgs, json: bool) -> Result<CommandExit, CommandError> {
    let what = match args.verb {
        Some(OpsVerb::Promotion(verb)) => return promotion::run(verb, json),
        Some(OpsVerb::List(node)) => return list(&node, json),
        Some(OpsVerb::Show(what)) => {
            let what = what.arranged();
            if what.operation.is_none() {
                return Err(no_operation(&what.node));
            }
            what
        }
        None => args.what.arranged().meant_as_verb(),
    };
    let Some(operation) = &what.operation else {
        return list(&what.node, json);
    };
    if let (Some(word), Some(meant)) = (&what.node.node, &what.node.meant)
        && !operation.contains('/')
    {
        let text = format!("'{word}' was taken for the NODE; {meant}");
        return Err(CommandError::usage(text));
    }
    check_operation(&what.node, operation, "ops show")?;
    describe(&what.node, operation.trim_start_matches('/'), json)
}

/// The verb that help lists and that a word is most like.
fn nearest_verb(word: &str) -> Option<String> {
    let verbs = OpsVerb::augment_subcommands(Command::new("ops"));
    let verbs = verbs.get_subcommands().filter(|verb| !verb.is_hide_set());
    let likeness = |verb: &Command| {
        (
            strsim::jaro(verb.get_name(), word),
            verb.get_name().to_owned(),
        )
    };
    let near = verbs.map(likeness).filter(|near| near.0 > SIMILAR_MIN);
    near.max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, verb)| verb)
}

fn list(node: &NodeArgs, json: bool) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        let found = node.operations().await.map_err(call_error)?;
        if json {
            output::json_line(&found)?;
            return Ok(CommandExit::Ok);
        }
        let width = output::column(found.iter().map(|op| op.name.as_str()));
        for op in &found {
            output::line(&line(op, width))?;
        }
        Ok(CommandExit::Ok)
    })
}

/// The whole description; of a peer of a hub the summary, which is what hubs have.
fn describe(node: &NodeArgs, operation: &str, json: bool) -> Result<CommandExit, CommandError> {
    node.reached(async |node| {
        // A hub lists the operations of its peers, but does not describe them.
        if !node.is_behind_hub() {
            let spec = match node.schema(operation).await {
                Ok(spec) => spec,
                Err(error) if error.code == ErrorCode::NotFound => {
                    return Err(unknown_operation(node, operation, error).await);
                }
                Err(error) => return Err(call_error(error)),
            };
            show(&json!(spec), json)?;
            return Ok(CommandExit::Ok);
        }
        let found = node.operations().await.map_err(call_error)?;
        let Some(summary) = found.iter().find(|op| op.name == operation) else {
            let meant = meant_operation(&found, operation);
            let text = format!(
                "the peer serves no '{operation}' to the hub; {meant}'alknet ops list' lists those that it serves"
            );
            return Err(CommandError::new(CommandExit::Failed, "NOT_FOUND", text));
        };
        show(&json!(summary), json)?;
        Ok(CommandExit::Ok)
    })
}

fn line(op: &OperationSummary, width: usize) -> String {
    let kind = json!(op.op_type);
    let kind = kind.as_str().unwrap_or_default();
    format!("{:width$}  {kind:12}  {}", op.name, op.description)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct OpsTestCli {
        #[command(flatten)]
        args: OpsArgs,
    }

    fn parsed(line: &str) -> OpsArgs {
        let words = std::iter::once("ops").chain(line.split_whitespace());
        OpsTestCli::try_parse_from(words).expect(line).args
    }

    #[test]
    fn what_is_shown_follows_from_the_words() {
        for (line, node, operation) in [
            ("", None, None),
            ("attic", Some("attic"), None),
            ("node/info", None, Some("node/info")),
            ("attic node/info", Some("attic"), Some("node/info")),
        ] {
            for (verb, line) in [("", line.to_owned()), ("show", format!("show {line}"))] {
                let args = parsed(&line);
                let what = match args.verb {
                    Some(OpsVerb::Show(what)) => what,
                    Some(other) => panic!("{line}: {other:?}"),
                    None => args.what,
                };
                let what = what.arranged();
                let words = (what.node.node.as_deref(), what.operation.as_deref());
                assert_eq!(words, (node, operation), "{verb} {line}");
            }
        }
        for (word, verb) in [
            ("lst", Some("list")),
            ("shwo", Some("show")),
            ("proposal", Some("proposals")),
            ("attic", None),
        ] {
            assert_eq!(nearest_verb(word).as_deref(), verb, "{word}");
        }
        let misspelt = parsed("lst").what.arranged().meant_as_verb();
        let meant = misspelt.node.meant.as_deref();
        assert_eq!(meant, Some("did you mean 'alknet ops list'?"));
        assert!(matches!(parsed("list attic").verb, Some(OpsVerb::List(_))));
        let propose = parsed("propose attic ./total --as ada").verb;
        assert!(matches!(
            propose,
            Some(OpsVerb::Promotion(PromotionVerb::Propose(_)))
        ));
    }
}

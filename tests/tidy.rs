//! Holds what no lint can see: which room may use which, which room alone names which crate, what `state/` may not
//! mention, how long files and functions get, and what must not lie about in the tree.
//!
//! Method: every Rust file is read as tokens and as a syntax tree, so that comments, strings and line breaks can't fool a
//! rule, and each rule is a function from a source to its findings. Guarantees: each rule is also run on a planted
//! offence, so a rule that has gone blind fails here. Leaves out: style within a line (rustfmt, clippy), and whether the
//! rules are wise (docs/architecture.md).

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, LineColumn, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A room: a folder or file directly under `src/`, the rooms it may use, and the crates that it alone may name.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    /// In path form (`tokio_util::codec`); together with the other rooms that list the same.
    crates: &'static [&'static str],
}

/// Everything below the edge, for the rooms that may use all of it.
const CORE: [&str; 12] =
    ["types", "codec", "host", "watch", "clock", "storage", "tls", "telemetry", "transport", "state", "raft", "backup"];

/// The layers, lowest first. docs/architecture.md tells the reasons; a change here is a change there.
const ROOMS: &[Room] = &[
    Room { name: "types", may_use: &[], crates: &[] },
    Room { name: "codec", may_use: &["types"], crates: &[] },
    Room { name: "host", may_use: &["types"], crates: &[] },
    Room { name: "watch", may_use: &[], crates: &[] },
    Room { name: "clock", may_use: &["types", "host"], crates: &[] },
    Room { name: "storage", may_use: &["types", "codec", "clock"], crates: &["sled"] },
    Room { name: "tls", may_use: &["types"], crates: &["rustls"] },
    Room { name: "telemetry", may_use: &["types", "clock"], crates: &["tracing_subscriber"] },
    Room { name: "transport", may_use: &["types", "clock", "tls", "telemetry"], crates: &["tokio_util::codec"] },
    Room { name: "state", may_use: &["types", "codec", "storage"], crates: &[] },
    Room {
        name: "raft",
        may_use: &["types", "codec", "host", "watch", "clock", "telemetry", "storage", "transport", "state"],
        crates: &["openraft", "raft_log", "codeq"],
    },
    Room {
        name: "backup",
        may_use: &["types", "codec", "host", "watch", "clock", "storage", "state", "tls"],
        crates: &["object_store", "age", "croner"],
    },
    Room { name: "node", may_use: &CORE, crates: &[] },
    Room {
        name: "api",
        // Of storage only two values that stand in the doors of `state` and `node`.
        may_use: &["types", "codec", "clock", "telemetry", "state", "storage::Order", "storage::Error", "node"],
        crates: &["axum", "utoipa"],
    },
    Room { name: "client", may_use: &["types", "clock", "tls", "api::model"], crates: &["reqwest"] },
    Room { name: "workload", may_use: &["types", "clock", "client", "api::model"], crates: &["hdrhistogram"] },
    Room { name: "server", may_use: &["types", "clock", "telemetry", "transport", "node", "api"], crates: &[] },
    Room { name: "config", may_use: &["*"], crates: &["clap"] },
    Room { name: "cli", may_use: &["*"], crates: &["clap", "clap_complete", "anyhow", "indicatif"] },
    Room { name: "main", may_use: &["*"], crates: &["clap", "anyhow", "mimalloc"] },
    Room { name: "lib", may_use: &["*"], crates: &[] },
];

/// What `state/` may not mention: all of it differs between replicas, or between two runs of one. In path form.
const BANNED_IN_STATE: &[&str] = &[
    "HashMap",
    "HashSet",
    "f32",
    "f64",
    "async",
    "await",
    "tokio",
    "rand",
    "SystemTime",
    "Instant",
    "std::time",
    "std::env",
    "RandomState",
];

/// Enums of which every variant must be decided on in `state/`: no `_ =>` in a match over them.
const DECIDED_EXHAUSTIVELY: &[&str] = &["Operation", "TxnOp"];

/// What may stand at the top of the repository, besides dotfiles.
const TOP_LEVEL: &[&str] = &[
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "docker-compose.yml",
    "docs",
    "scripts",
    "src",
    "tests",
    // Made by building and by `quorate dev`; ignored by git.
    "target",
    "quorate-data",
];

/// Lines of code in one file, tests apart.
const FILE_CODE_LINES_MAX: usize = 500;
/// Lines of code in one function, signature and braces included, tests apart.
const FUNCTION_CODE_LINES_MAX: usize = 70;
/// Characters in the `//!` header of a file: less can't say what it is, what it guarantees and what it leaves out.
const HEADER_CHARS_MIN: usize = 40;

/// One offence.
struct Finding {
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.what)
    }
}

/// A path as it stands in the code (`crate::state::Txn` → three segments); a group of imports gives one for each.
struct Mention {
    segments: Vec<String>,
    line: usize,
    /// How many inline modules it stands in.
    nesting: usize,
    in_test: bool,
    after_use: bool,
    after_dot: bool,
    /// What follows: a call without arguments, a macro's `!`.
    empty_call: bool,
    bang: bool,
}

impl Mention {
    fn starts_with(&self, path: &str) -> bool {
        let mut own = self.segments.iter();
        path.split("::").all(|part| own.next().is_some_and(|segment| segment == part))
    }
}

/// A Rust file, parsed.
struct Source {
    /// From the top of the repository, with `/`.
    path: String,
    text: String,
    tree: syn::File,
    mentions: Vec<Mention>,
    /// First and last line of each item under `#[cfg(test)]`.
    test_lines: Vec<(usize, usize)>,
    floats: Vec<usize>,
    ignored: Vec<usize>,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let tree = syn::parse_file(text).unwrap_or_else(|error| panic!("{path} is no Rust: {error}"));
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{path} has no tokens: {error}"));
        let mut source = Self {
            path: path.to_owned(),
            text: text.to_owned(),
            tree,
            mentions: Vec::new(),
            test_lines: Vec::new(),
            floats: Vec::new(),
            ignored: Vec::new(),
        };
        let all_test = source.is_test_file();
        source.walk(tokens, 0, all_test);
        source
    }

    fn is_test_file(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// `state` for `src/state/apply.rs`; `None` outside `src/`.
    fn room(&self) -> Option<&str> {
        self.path.strip_prefix("src/")?.split(['/', '.']).next()
    }

    /// How many modules deep the file is: 1 for `src/clock.rs` and `src/state/mod.rs`.
    fn depth(&self) -> usize {
        let modules = self.path.trim_start_matches("src/").trim_end_matches(".rs").split('/');
        modules.filter(|name| !["mod", "lib", "main"].contains(name)).count()
    }

    fn in_test(&self, line: usize) -> bool {
        self.is_test_file() || self.test_lines.iter().any(|(first, last)| (*first..=*last).contains(&line))
    }

    /// Lines of code, neither blank nor comment, from `first` to `last`, that count.
    fn code_lines(&self, first: usize, last: usize) -> usize {
        let lines = self.text.lines().zip(1..).skip(first - 1).take(last + 1 - first);
        let code = lines.filter(|(text, _)| !text.trim().is_empty() && !text.trim_start().starts_with("//"));
        code.filter(|(_, line)| !self.in_test(*line)).count()
    }

    fn finding(&self, line: usize, what: impl Into<String>) -> Finding {
        Finding { file: self.path.clone(), line, what: what.into() }
    }

    /// Collects paths, test spans and what else only tokens tell.
    fn walk(&mut self, tokens: TokenStream, nesting: usize, in_test: bool) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let (mut at, mut test_item, mut test_from) = (0, false, 0);
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(_) => at = self.path_at(&tokens, at, &[], nesting, in_test || test_item),
                TokenTree::Literal(literal) => {
                    if matches!(syn::parse_str(&literal.to_string()), Ok(syn::Lit::Float(_))) && !in_test && !test_item
                    {
                        self.floats.push(literal.span().start().line);
                    }
                    at += 1;
                }
                TokenTree::Punct(punct) => {
                    test_item &= punct.as_char() != ';';
                    at += 1;
                }
                TokenTree::Group(group) => {
                    let is_attribute =
                        group.delimiter() == Delimiter::Bracket && at > 0 && is_punct(tokens.get(at - 1), '#');
                    let text = group.stream().to_string().replace(' ', "");
                    if is_attribute && (text == "ignore" || text.starts_with("ignore=")) {
                        self.ignored.push(group.span().start().line);
                    }
                    if is_attribute
                        && ["cfg(test)", "cfg(any(test", "cfg(all(test"].iter().any(|cfg| text.starts_with(cfg))
                    {
                        (test_item, test_from) = (true, group.span().start().line);
                    }
                    let named = at >= 2 && is_ident(&tokens[at - 2], "mod");
                    let is_body = group.delimiter() == Delimiter::Brace;
                    self.walk(group.stream(), nesting + usize::from(is_body && named), in_test || test_item);
                    if is_body && test_item {
                        self.test_lines.push((test_from, group.span_close().end().line));
                        test_item = false;
                    }
                    at += 1;
                }
            }
        }
    }

    /// Reads the path that begins at `at`; returns where it ends.
    fn path_at(&mut self, tokens: &[TokenTree], at: usize, prefix: &[String], nesting: usize, in_test: bool) -> usize {
        let start = at;
        let mut at = at;
        let mut segments = prefix.to_vec();
        let LineColumn { line, .. } = tokens[at].span().start();
        while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
            segments.push(ident.to_string());
            at += 1;
            if !(is_punct(tokens.get(at), ':') && is_punct(tokens.get(at + 1), ':')) {
                break;
            }
            at += 2;
        }
        if let Some(TokenTree::Group(group)) = tokens.get(at)
            && group.delimiter() == Delimiter::Brace
            && is_punct(tokens.get(at - 1), ':')
        {
            let members: Vec<TokenTree> = group.stream().into_iter().collect();
            let mut member = 0;
            while member < members.len() {
                member = match &members[member] {
                    TokenTree::Ident(_) => self.path_at(&members, member, &segments, nesting, in_test),
                    _ => member + 1,
                };
            }
            return at + 1;
        }
        let before = start.checked_sub(1).and_then(|before| tokens.get(before));
        let empty_call = matches!(tokens.get(at), Some(TokenTree::Group(group))
            if group.delimiter() == Delimiter::Parenthesis && group.stream().is_empty());
        self.mentions.push(Mention {
            segments,
            line,
            nesting,
            in_test,
            after_use: !prefix.is_empty() || before.is_some_and(|token| is_ident(token, "use")),
            after_dot: is_punct(before, '.'),
            empty_call,
            bang: is_punct(tokens.get(at), '!') && !is_punct(tokens.get(at + 1), '='),
        });
        at
    }
}

fn is_punct(token: Option<&TokenTree>, wanted: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}

fn is_ident(token: &TokenTree, wanted: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == wanted)
}

/// A room uses only what stands in its row of [`ROOMS`], by whatever form of path.
fn layers(source: &Source) -> Vec<Finding> {
    let Some(own) = source.room() else { return Vec::new() };
    let Some(room) = ROOMS.iter().find(|room| room.name == own) else {
        return vec![source.finding(1, format!("\"{own}\" is no room; rooms and layers stand in tests/tidy.rs"))];
    };
    let mut findings = Vec::new();
    for mention in &source.mentions {
        let supers = mention.segments.iter().take_while(|segment| *segment == "super").count();
        let from_root = match mention.segments.first().map(String::as_str) {
            Some("crate") => &mention.segments[1..],
            Some("super") if supers >= source.depth() + mention.nesting => &mention.segments[supers..],
            _ => continue,
        };
        let Some(used) = from_root.first() else { continue };
        let below =
            |path: &&str| path.split("::").zip(0..).all(|(part, at)| from_root.get(at).is_some_and(|s| s == part));
        // A test may build on whatever lies lower, to make what it needs.
        let lower = || ROOMS.iter().map(|room| room.name).take_while(|name| *name != own).any(|name| name == used);
        let allowed = used == own
            || (mention.in_test && lower())
            || room.may_use.contains(&"*")
            || room.may_use.iter().any(below);
        if !allowed {
            findings.push(source.finding(mention.line, format!("`{own}` may not use `{}`", from_root.join("::"))));
        }
    }
    findings
}

/// A crate that a room has for itself is named nowhere else.
fn crates(source: &Source) -> Vec<Finding> {
    let Some(own) = source.room() else { return Vec::new() };
    let mut findings = Vec::new();
    for mention in source.mentions.iter().filter(|mention| mention.segments.len() > 1 || mention.after_use) {
        let Some(path) = ROOMS.iter().flat_map(|room| room.crates).find(|path| mention.starts_with(path)) else {
            continue;
        };
        let owners: Vec<&str> = ROOMS.iter().filter(|room| room.crates.contains(path)).map(|room| room.name).collect();
        if !mention.after_dot && !owners.contains(&own) {
            let what = format!("only {} may name `{path}`, not `{own}`", owners.join(", "));
            findings.push(source.finding(mention.line, what));
        }
    }
    findings
}

/// Nothing in `state/` that could make two replicas differ.
fn determinism(source: &Source) -> Vec<Finding> {
    if source.room() != Some("state") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for mention in source.mentions.iter().filter(|mention| !mention.in_test) {
        for banned in BANNED_IN_STATE {
            if mention.starts_with(banned) || mention.segments.iter().any(|segment| segment == banned) {
                findings.push(source.finding(mention.line, format!("`{banned}` has no place in state/")));
            }
        }
    }
    findings.extend(source.floats.iter().map(|line| source.finding(*line, "a float has no place in state/")));
    findings
}

/// No `_ =>` over an enum of which `state/` must decide on every variant.
fn exhaustiveness(source: &Source) -> Vec<Finding> {
    struct Matches<'a>(&'a Source, Vec<Finding>);
    struct Names(bool);
    impl<'ast> Visit<'ast> for Names {
        fn visit_path(&mut self, path: &'ast syn::Path) {
            self.0 |= path.segments.iter().any(|segment| DECIDED_EXHAUSTIVELY.iter().any(|name| segment.ident == name));
        }
    }
    impl<'ast> Visit<'ast> for Matches<'_> {
        fn visit_expr_match(&mut self, expression: &'ast syn::ExprMatch) {
            let mut names = Names(false);
            expression.arms.iter().for_each(|arm| names.visit_pat(&arm.pat));
            for arm in &expression.arms {
                let line = arm.fat_arrow_token.spans[0].start().line;
                let catches_all = match &arm.pat {
                    syn::Pat::Wild(_) => true,
                    // A bare lower-case name binds whatever comes.
                    syn::Pat::Ident(name) => {
                        name.subpat.is_none() && name.ident.to_string().starts_with(char::is_lowercase)
                    }
                    _ => false,
                };
                if names.0 && catches_all && !self.0.in_test(line) {
                    self.1.push(self.0.finding(line, "a match over operations decides on each: no catch-all arm"));
                }
            }
            visit::visit_expr_match(self, expression);
        }
    }
    if source.room() != Some("state") {
        return Vec::new();
    }
    let mut matches = Matches(source, Vec::new());
    matches.visit_file(&source.tree);
    matches.1
}

/// Files and functions stay short enough to be read at a sitting; tests are named for a behaviour.
fn sizes_and_names(source: &Source) -> Vec<Finding> {
    struct Functions<'a>(&'a Source, Vec<Finding>);
    impl Functions<'_> {
        fn check(&mut self, attributes: &[syn::Attribute], signature: &syn::Signature, block: &syn::Block) {
            let (first, last) = (signature.fn_token.span.start().line, block.brace_token.span.close().end().line);
            let lines = self.0.code_lines(first, last);
            if lines > FUNCTION_CODE_LINES_MAX {
                let what =
                    format!("`{}` has {lines} lines of code; {FUNCTION_CODE_LINES_MAX} at most", signature.ident);
                self.1.push(self.0.finding(first, what));
            }
            let is_test =
                attributes.iter().any(|attribute| attribute.path().segments.iter().any(|s| s.ident == "test"));
            if is_test && signature.ident.to_string().starts_with("test_") {
                self.1.push(self.0.finding(first, "a test is named for the behaviour it shows, without `test_`"));
            }
        }
    }
    impl<'ast> Visit<'ast> for Functions<'_> {
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            self.check(&item.attrs, &item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.check(&item.attrs, &item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
        fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
            if let Some(block) = &item.default {
                self.check(&item.attrs, &item.sig, block);
            }
            visit::visit_trait_item_fn(self, item);
        }
    }
    let mut functions = Functions(source, Vec::new());
    functions.visit_file(&source.tree);
    let lines = source.code_lines(1, source.text.lines().count().max(1));
    if lines > FILE_CODE_LINES_MAX {
        let what =
            format!("{lines} lines of code; {FILE_CODE_LINES_MAX} at most: is there a second thing living in it?");
        functions.1.push(source.finding(1, what));
    }
    functions.1
}

/// Each file says first what it is.
fn headers(source: &Source) -> Vec<Finding> {
    let header: String = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//!"))
        .map(|line| line.trim_start_matches("//!"))
        .collect();
    if header.trim().chars().count() < HEADER_CHARS_MIN {
        return vec![source.finding(1, "no `//!` header: what it is, what it guarantees, what it leaves out")];
    }
    Vec::new()
}

/// Nothing half-done, and no panic that a caller could have been told about instead.
fn leftovers(source: &Source) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        source.ignored.iter().map(|line| source.finding(*line, "an ignored test shows nothing")).collect();
    for mention in &source.mentions {
        let name = mention.segments.last().map_or("", String::as_str);
        if mention.bang && ["todo", "unimplemented", "dbg"].contains(&name) {
            findings.push(source.finding(mention.line, format!("`{name}!` is left over")));
        }
        if mention.after_dot && mention.empty_call && name == "unwrap" && !mention.in_test && source.room().is_some() {
            let what = "`unwrap()`: return the error, or `expect` with the reason why it can't be";
            findings.push(source.finding(mention.line, what));
        }
    }
    findings
}

/// Words and paths that no file of the tree may hold, whatever its kind. Put together here, so that this file passes.
fn text(path: &str, text: &str) -> Vec<Finding> {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];
    let machine_paths = ["home", "root", "Users", "work", "farm"].map(|folder| format!("/{folder}/"));
    let mut findings = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        let mut found = |what: String| findings.push(Finding { file: path.to_owned(), line: number, what });
        let mut of_line = line.split(|c: char| !c.is_alphanumeric());
        if let Some(word) = of_line.find(|word| words.contains(word)) {
            found(format!("\"{word}\": do it, or file an issue"));
        }
        for machine_path in &machine_paths {
            let starts_here = |at: usize| {
                let before = line[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && !['.', '}', '-', '_', '*', '~'].contains(&c))
            };
            if line.match_indices(machine_path.as_str()).any(|(at, _)| starts_here(at)) {
                found(format!("\"{machine_path}…\" is a path of one machine"));
            }
        }
    }
    findings
}

/// Relative links in Markdown lead to a file.
fn links(root: &Path, path: &str, text: &str) -> Vec<Finding> {
    let folder = root.join(path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut findings = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                findings.push(Finding { file: path.to_owned(), line: number, what: format!("dead link to {target}") });
            }
        }
    }
    findings
}

/// Every file below `folder` but what is built, as paths from `root`.
fn files_below(root: &Path, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.join(folder)];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).unwrap_or_else(|error| panic!("can't list {}: {error}", path.display()));
            open.extend(entries.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("target")));
        } else if path.is_file() {
            found.push(path.strip_prefix(root).unwrap().to_path_buf());
        }
    }
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path and contents of every text file of the tree; what is no UTF-8 is a fixture and passed over.
fn texts() -> Vec<(String, String)> {
    // In a second work tree `.git` is a file, and tells where the first one is.
    let of_the_tree = |path: &PathBuf| path.is_file() && !path.ends_with(".git");
    let top = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()).filter(of_the_tree);
    let mut paths: Vec<PathBuf> = top.map(|path| path.strip_prefix(root()).unwrap().to_path_buf()).collect();
    paths.extend(["src", "tests", "scripts", "docs", ".ci"].iter().flat_map(|folder| files_below(root(), folder)));
    let read = |path: PathBuf| Some((path.to_str()?.replace('\\', "/"), fs::read_to_string(root().join(&path)).ok()?));
    paths.into_iter().filter_map(read).collect()
}

/// The package's own Rust files.
fn sources() -> Vec<Source> {
    let is_own = |path: &str| path.ends_with(".rs") && (path.starts_with("src/") || path.starts_with("tests/"));
    let sources: Vec<Source> =
        texts().iter().filter(|(path, _)| is_own(path)).map(|(path, text)| Source::new(path, text)).collect();
    assert!(sources.len() > 10, "the source tree was not found");
    sources
}

fn assert_clean(findings: impl IntoIterator<Item = Finding>) {
    let findings: Vec<String> = findings.into_iter().map(|finding| finding.to_string()).collect();
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    assert_clean(sources().iter().flat_map(layers));
}

#[test]
fn a_crate_that_belongs_to_a_room_is_named_nowhere_else() {
    assert_clean(sources().iter().flat_map(crates));
}

#[test]
fn the_state_machine_mentions_nothing_that_differs_between_replicas() {
    assert_clean(sources().iter().flat_map(determinism));
}

#[test]
fn the_state_machine_decides_on_every_operation() {
    assert_clean(sources().iter().flat_map(exhaustiveness));
}

#[test]
fn files_and_functions_are_short_and_tests_are_named_for_a_behaviour() {
    assert_clean(sources().iter().flat_map(sizes_and_names));
}

#[test]
fn every_file_opens_with_what_it_is() {
    assert_clean(sources().iter().flat_map(headers));
}

#[test]
fn nothing_is_left_half_done() {
    assert_clean(sources().iter().flat_map(leftovers));
    assert_clean(texts().iter().flat_map(|(path, contents)| text(path, contents)));
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let documents = texts().into_iter().filter(|(path, _)| path.ends_with(".md"));
    assert_clean(documents.flat_map(|(path, contents)| links(root(), &path, &contents)));
}

#[test]
fn the_top_of_the_repository_stays_short() {
    let names = fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strangers: Vec<String> =
        names.filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str())).collect();
    assert!(strangers.is_empty(), "not listed in tests/tidy.rs: {strangers:?}");
}

/// The rules on planted offences: each must find exactly the lines it should, and nothing in what is allowed.
mod planted {
    use super::*;

    /// The lines a rule complains of.
    fn check(rule: fn(&Source) -> Vec<Finding>, path: &str, code: &str, lines: &[usize]) {
        let found: Vec<usize> = rule(&Source::new(path, code)).iter().map(|finding| finding.line).collect();
        assert_eq!(found, lines, "in {path}:\n{code}");
    }

    #[test]
    fn a_wrong_layer_is_found_in_every_form_of_path() {
        check(layers, "src/state/apply.rs", "use crate::types::Key;\nuse crate::raft::RaftNode;", &[2]);
        check(layers, "src/state/apply.rs", "use crate::{types::Key,\n node::{self, Node}};", &[2, 2]);
        check(layers, "src/state/apply.rs", "fn f() {\n let _ = crate::clock::now();\n}", &[2]);
        check(layers, "src/state/apply.rs", "fn f() {\n g!(1, crate::clock::now());\n}", &[2]);
        check(layers, "src/state/apply.rs", "use super::view::View;\nuse super::super::api::router;", &[2]);
        check(layers, "src/state/mod.rs", "use super::types::Key;\nuse super::client::Client;", &[2]);
        check(layers, "src/state/mod.rs", "mod tests {\n use super::view;\n use super::super::cli;\n}", &[3]);
        check(layers, "src/client/mod.rs", "use crate::api::model::Record;\nuse crate::api::router;", &[2]);
        check(layers, "src/state/apply/tests.rs", "use crate::clock;\nuse crate::raft::RaftNode;", &[2]);
        check(layers, "src/shed/mod.rs", "", &[1]);
        check(layers, "src/cli/serve.rs", "use crate::raft::RaftNode; // crate::everything", &[]);
        check(layers, "src/types/key.rs", "/// Like [`crate::raft::RaftNode`].\nstruct A; // crate::raft", &[]);
    }

    #[test]
    fn a_crate_named_outside_its_room_is_found() {
        check(crates, "src/raft/log.rs", "use openraft::Raft;\nuse sled::Db;", &[2]);
        check(crates, "src/node/mod.rs", "use openraft;\nfn f(r: openraft::Raft<C>) {}", &[1, 2]);
        check(crates, "src/node/mod.rs", "use tokio_util::sync::X;\nuse tokio_util::{codec::Y, io::Z};", &[2]);
        check(crates, "src/state/mod.rs", "#[derive(clap::Parser)]\nstruct A;", &[1]);
        check(crates, "src/raft/log.rs", "use crate::storage::sled::Engine;\nuse crate::{storage::{sled::X}};", &[]);
        check(crates, "src/raft/log.rs", "fn f(s: S) { s.sled.flush(); let sled = 1; }", &[]);
        check(crates, "tests/storage.rs", "use sled::Db;", &[]);
    }

    #[test]
    fn nondeterminism_is_found_in_state_and_only_there() {
        let code = "use std::collections::{BTreeMap, HashMap};\nasync fn f() -> f64 {\n g().await\n}\nconst A: u8 = 1.5 as u8;";
        check(determinism, "src/state/apply.rs", code, &[1, 2, 2, 3, 5]);
        check(determinism, "src/state/apply.rs", "use std::time::Duration;\nuse std::env;", &[1, 2]);
        check(determinism, "src/raft/log.rs", code, &[]);
        check(determinism, "src/state/apply.rs", "// HashMap\nconst A: &str = \"f64 1.5\";\nfn f() { a[1..2]; }", &[]);
        check(determinism, "src/state/apply.rs", "#[cfg(test)]\nmod tests {\n use std::time::Instant;\n}", &[]);
        check(determinism, "src/state/apply/tests.rs", "use std::time::Instant;", &[]);
    }

    #[test]
    fn a_catch_all_over_operations_is_found() {
        let code = "fn f() { match op {\n Operation::Txn(t) => 1,\n _ => 2,\n} }";
        check(exhaustiveness, "src/state/apply.rs", code, &[3]);
        check(exhaustiveness, "src/state/apply.rs", &code.replace("_ =>", "other =>"), &[3]);
        check(exhaustiveness, "src/state/apply.rs", &code.replace("_ =>", "Operation::Lease =>"), &[]);
        check(exhaustiveness, "src/state/apply.rs", &code.replace("Operation::Txn", "Some"), &[]);
        check(exhaustiveness, "src/api/kv.rs", code, &[]);
    }

    #[test]
    fn long_files_and_functions_are_found_and_tests_are_not_counted() {
        let body = "    call();\n".repeat(FUNCTION_CODE_LINES_MAX - 1);
        check(sizes_and_names, "src/raft/a.rs", &format!("\nfn f() {{\n{body}}}\n"), &[2]);
        check(sizes_and_names, "src/raft/a.rs", &format!("impl A {{\nfn f() {{\n{body}}}\n}}\n"), &[2]);
        let commented = format!("fn f() {{\n    // why\n\n{}}}\n", &body[12..]);
        check(sizes_and_names, "src/raft/a.rs", &commented, &[]);
        check(sizes_and_names, "src/raft/a.rs", &format!("#[cfg(test)]\nmod tests {{\nfn f() {{\n{body}}}\n}}\n"), &[]);
        let items = "const A: u8 = 1;\n".repeat(FILE_CODE_LINES_MAX);
        check(sizes_and_names, "src/raft/a.rs", &items, &[]);
        check(sizes_and_names, "src/raft/a.rs", &format!("{items}const B: u8 = 1;\n"), &[1]);
        check(sizes_and_names, "tests/a.rs", "#[test]\nfn test_it() {}\n#[tokio::test]\nasync fn test_b() {}", &[2, 4]);
    }

    #[test]
    fn a_missing_header_is_found() {
        check(headers, "src/raft/a.rs", "use a;", &[1]);
        check(headers, "src/raft/a.rs", "//! raft", &[1]);
        check(
            headers,
            "src/raft/a.rs",
            "//! The log.\n//!\n//! Guarantees: an entry that was flushed is there after a crash.",
            &[],
        );
    }

    #[test]
    fn leftovers_are_found() {
        check(leftovers, "src/raft/a.rs", "fn f() {\n todo!()\n}\nfn g() { std::dbg!(1); a != b; }", &[2, 4]);
        check(leftovers, "tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}", &[2]);
        check(leftovers, "src/raft/a.rs", "fn f() {\n a.unwrap();\n b.unwrap_or(1);\n}", &[2]);
        check(leftovers, "src/raft/a.rs", "#[cfg(test)]\nmod tests {\n fn f() { a.unwrap(); }\n}", &[]);
    }

    #[test]
    fn words_paths_and_dead_links_are_found() {
        let count = |line: &str| text("docs/a.md", line).len();
        assert_eq!(count(concat!("// TO", "DO later")), 1);
        assert_eq!(count(concat!("see /ho", "me/someone/x and `/ro", "ot/.cargo`")), 2);
        assert_eq!(count("all to do with client/work/x, ~/work/y and https://a.b/c"), 0);
        assert_eq!(links(root(), "docs/a.md", "[a](../Cargo.toml#x) [b](https://a.b/c) [c](#d)").len(), 0);
        assert_eq!(links(root(), "docs/a.md", "[a](nowhere.md)").len(), 1);
    }
}

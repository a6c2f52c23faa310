//! `dev`: a whole cluster on loopback in one process, to try things out.
//!
//! Guarantees: the nodes are those of `serve`, with real listeners and directories. Leaves out: the nodes.

use std::path::{Path, PathBuf};

use super::output::Format;
use super::{Failure, Output, run_server};
use crate::config::{CLIENT_PORT_DEFAULT, ServeConfig};

/// Run a whole cluster on this machine in one process
///
/// Node i serves clients on PORT + 2(i-1) and the other members on the port after it. Ctrl-C stops all. Started again with
/// the same directory, the cluster goes on where it was.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  quorate dev --nodes 3 --port 7480")]
pub(super) struct Dev {
    /// How many nodes
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    nodes: u16,
    /// Directory of the nodes
    #[arg(long, value_name = "DIR", default_value = "./quorate-data")]
    data_dir: PathBuf,
    /// Client port of the first node
    #[arg(long, value_name = "PORT", default_value_t = CLIENT_PORT_DEFAULT)]
    port: u16,
}

impl Dev {
    pub(super) fn run(self) -> Result<(), Failure> {
        let nodes = ServeConfig::dev(self.nodes, &self.data_dir, self.port)?;
        let banner = banner(&nodes, &self.data_dir);
        run_server::run_dev(nodes, move || {
            let mut out = Output::new(Format::Text);
            out.text(&banner)?;
            out.finish()
        })
    }
}

/// Where the nodes are, three lines to try, and how it ends.
fn banner(nodes: &[ServeConfig], data_dir: &Path) -> String {
    let mut text = String::new();
    for node in nodes {
        text += &format!("{}  {}  {}\n", node.name, node.advertise_client_url, node.data_dir.display());
    }
    let url = |index: usize| &nodes[index % nodes.len()].advertise_client_url;
    text + &format!(
        "\nTry it:\n  curl -X PUT --data hello {}/v1/kv/greeting\n  curl {}/v1/kv/greeting\n  curl {}/v1/cluster\n\n\
         Ctrl-C stops the cluster; its data stays in {}\n",
        url(0),
        url(1),
        url(2),
        data_dir.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_banner_names_every_node_and_three_commands() {
        let nodes = ServeConfig::dev(2, Path::new("d"), 7480).unwrap();
        let expected = "n1  http://127.0.0.1:7480  d/n1\nn2  http://127.0.0.1:7482  d/n2\n\nTry it:\n  \
                        curl -X PUT --data hello http://127.0.0.1:7480/v1/kv/greeting\n  \
                        curl http://127.0.0.1:7482/v1/kv/greeting\n  curl http://127.0.0.1:7480/v1/cluster\n\n\
                        Ctrl-C stops the cluster; its data stays in d\n";
        assert_eq!(banner(&nodes, Path::new("d")), expected);
    }
}

//! Stage 05 from its arguments to a listening server.

use std::{
    io::Read,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use clap::{Args, Parser, builder::BoolishValueParser};
use tokio::net::TcpListener;

use super::{
    browse::Library,
    catalog::Catalog,
    engine::Engine,
    guard::Guard,
    routes::{self, App},
    server,
};
use crate::{
    capture::CapturedModelArgs,
    remote::{Client, Location, Reader, args::Staging},
    stage::{
        CommonArgs, Context, Failure, Result, Stage,
        progress::{bytes, thousands},
        store::{Pointer, Store},
    },
};

const EXAMPLES: &str = "\
Examples:
  05_explore                              the newest training first; prints the address to open
  SAE_RUN_ID=my-sae 05_explore            another one first
  EXPLORE_PORT=9000 05_explore            at another port
  EXPLORE_PORT=0 05_explore               at any free port
  MODEL_ID=/models/bielik 05_explore      where the capture's model has moved
  05_explore --check                      what it would show, and what it needs
  sbatch slurm/submit_explore.sh          as a SLURM job; its log has the ssh command to reach it

The interface is described at /api/openapi.json.";

/// Threads that talk; all work is done elsewhere.
const TALKING: usize = 2;
/// Requests that read or compute at a time.
const WORKING: usize = 64;

/// Serves a page to browse latents, see them in a text, and steer the model with them.
///
/// Shows all complete trainings of the store, with what 03_top_sentences and 04_name_latents have
/// written about them; the model is loaded when a text is first completed. Writes nothing. Ends on
/// Ctrl-C.
#[derive(Parser, Debug)]
#[command(name = "05_explore", version, after_help = EXAMPLES)]
pub struct Explore {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    model: CapturedModelArgs,
}

#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
struct ServerArgs {
    /// Training to show first [default: the newest complete one, in sae_run_id.txt]
    #[arg(long, env, value_name = "NAME")]
    sae_run_id: Option<String>,
    /// Address or name to listen at; 0.0.0.0 for all of this machine's
    #[arg(long, env, value_name = "ADDRESS", default_value = "127.0.0.1")]
    listen: String,
    /// Port to listen at; 0 for any that is free
    #[arg(long, env, value_name = "PORT", default_value_t = 8757)]
    explore_port: u16,
    /// The login node as your own machine knows it, for the ssh command that a job prints
    /// [default: where the job was submitted]
    #[arg(long, env, value_name = "HOST")]
    tunnel_host: Option<String>,
    /// Let in everybody on this machine, without a token; only where LISTEN is a loopback address
    #[arg(long, env, value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true,
          default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    no_auth: bool,
    /// Completions and generations that may wait while one runs; others are refused with status 429
    #[arg(long, env, value_name = "N", default_value_t = 8,
          value_parser = clap::value_parser!(u16).range(0..=1000))]
    explore_queue: u16,
}

impl Stage for Explore {
    const SECTION: &'static str = "explore";

    fn common(&self) -> &CommonArgs {
        &self.common
    }

    fn check(&self, context: &Context) -> Result<()> {
        let address = self.address()?;
        let catalog = self.catalog()?;
        let trainings = catalog.trainings()?;
        let newest = catalog.newest(&trainings);
        let library = Library::new(catalog);
        let mut text = format!("address     {address}\ntrainings   {}\n", trainings.len());
        for meta in trainings.iter().filter(|meta| newest.as_ref() == Some(&meta.run_id)) {
            let opened = library.open(&meta.run_id).map_err(|r| Failure::input(r.error))?;
            let capture = library.catalog.capture(&meta.capture_run_id)?;
            let model = capture.map_or_else(
                || format!("unknown: capture `{}` is not in this store", meta.capture_run_id),
                |capture| capture.model.id,
            );
            let top = opened.top().map_or_else(|refusal| refusal.error, |_| "yes".to_owned());
            let weights = (meta.d_sae * meta.d_in * 2 * size_of::<f32>()) as u64;
            text += &format!(
                "first       {}\nlatents     {} ({} named)\nsentences   {top}\nmodel       {model}\n\
                 memory      {} for its weights, once they are needed, and the model\n",
                meta.run_id,
                thousands(meta.d_sae as u64),
                thousands(opened.names().len() as u64),
                bytes(weights),
            );
        }
        context.print(&text);
        Ok(())
    }

    fn run(&self, context: &Context) -> Result<()> {
        let address = self.address()?;
        let catalog = self.catalog()?;
        let token = if self.server.no_auth { None } else { Some(random_token()?) };
        let host = crate::stage::heartbeat::host();
        let guard = Guard::new(token.clone(), vec![host, self.server.listen.clone()]);
        let waiting = usize::from(self.server.explore_queue);
        let engine = Engine::new(self.model.clone(), self.common.device.clone(), waiting);
        let app = App { guard, library: Library::new(catalog), engine, stop: context.stop.clone() };
        let app = Arc::new(app);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(TALKING)
            .max_blocking_threads(WORKING)
            .enable_all()
            .build()?;
        let served = runtime.block_on(async {
            let listener = TcpListener::bind(address).await.map_err(|e| unusable(address, &e))?;
            let address = listener.local_addr()?;
            let query = token.map(|token| format!("?token={token}")).unwrap_or_default();
            let mut reachable = reachable(address);
            if std::env::var_os("SLURM_JOB_ID").is_some() {
                context.print(&self.tunnel(address));
                reachable = SocketAddr::from(([127, 0, 0, 1], address.port()));
            }
            context.print(&format!("http://{reachable}/{query}\n"));
            tracing::info!("listening at {address}; Ctrl-C ends it");
            server::serve(listener, routes::router(app), &context.stop).await
        });
        // A computation that still runs has nobody left to tell.
        runtime.shutdown_background();
        served
    }
}

impl Explore {
    fn address(&self) -> Result<SocketAddr> {
        let (name, port) = (self.server.listen.as_str(), self.server.explore_port);
        let unknown = |why: String| {
            Failure::usage(format!("LISTEN is `{name}`: {why}"))
                .hint("give an address of this machine, or localhost")
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        let found = (bare, port).to_socket_addrs().map_err(|e| unknown(e.to_string()))?;
        // 127.0.0.1 before ::1, where tunnels lead.
        let found = found.min_by_key(SocketAddr::is_ipv6);
        let address = found.ok_or_else(|| unknown("it has no address".to_owned()))?;
        if self.server.no_auth && !address.ip().is_loopback() {
            let what = format!("NO_AUTH lets in everybody who reaches {}", address.ip());
            return Err(Failure::usage(what).hint("set LISTEN=127.0.0.1, or leave NO_AUTH unset"));
        }
        Ok(address)
    }

    /// How to reach a job's server, on a node that the user's own machine does not see.
    fn tunnel(&self, address: SocketAddr) -> String {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let user = variable("USER").or_else(|| variable("LOGNAME")).unwrap_or("USER".to_owned());
        let given = self.server.tunnel_host.clone();
        let login = given.or_else(|| variable("SLURM_SUBMIT_HOST")).unwrap_or("LOGIN_NODE".into());
        let (node, port) = (crate::stage::heartbeat::host(), address.port());
        let command = if address.ip().is_loopback() {
            format!("ssh -N -L {port}:{address} -J {user}@{login} {user}@{node}")
        } else {
            format!("ssh -N -L {port}:{node}:{port} {user}@{login}")
        };
        format!(
            "run this on your own machine, and open there the address that follows:\n  {command}\n"
        )
    }

    /// The store's runs; of a remote store those that this node has, and the one to show first.
    fn catalog(&self) -> Result<Catalog> {
        let store = Store::new(self.common.store_root());
        let mut first = self.server.sae_run_id.clone();
        if let Some(url) = self.common.store_url() {
            let client = Client::new(Location::parse(url)?)?;
            let reader = Reader::new(store.clone(), Some(client), Staging::Never, true);
            let (name, dir) = reader.find(first.as_deref(), Pointer::Training)?;
            let capture = crate::sae::train::TrainingMeta::read_complete(&dir)?.capture_run_id;
            reader.find(Some(&capture), Pointer::Capture)?;
            first = Some(name);
        } else if first.is_some() {
            store.find(first.as_deref(), Pointer::Training)?;
        }
        let catalog = Catalog::new(store.clone(), first.clone());
        let trainings = catalog.trainings()?;
        let has = |name: &String| trainings.iter().any(|meta| meta.run_id == *name);
        if let Some(name) = first.filter(|name| !has(name)) {
            return Err(Failure::usage(format!(
                "SAE_RUN_ID names run `{name}`, which is no complete training"
            ))
            .hint("run 02_train_sae until it exits with 0"));
        }
        if trainings.is_empty() {
            let what = format!("`{}` has no complete training", store.root().display());
            return Err(Failure::input(what)
                .hint("run 02_train_sae first, or point STORE_DIR at its store"));
        }
        Ok(catalog)
    }
}

fn unusable(address: SocketAddr, error: &std::io::Error) -> Failure {
    let failure = Failure::unavailable(format!("cannot listen at {address}: {error}"));
    failure.hint("set EXPLORE_PORT to another port, or to 0 for any that is free")
}

/// The address to open: of a server at all addresses that of this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let local: IpAddr = if address.is_ipv4() {
        [127, 0, 0, 1].into()
    } else {
        std::net::Ipv6Addr::LOCALHOST.into()
    };
    let ip = if address.ip().is_unspecified() { local } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

/// 128 bits that nobody can guess, in hexadecimal.
fn random_token() -> Result<String> {
    let mut bits = [0; 16];
    fs_err::File::open("/dev/urandom")?.read_exact(&mut bits)?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}

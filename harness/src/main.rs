//! The binary `wattle`: see [`wattle::run`].

fn main() -> std::process::ExitCode {
    wattle::run(std::env::args_os())
}

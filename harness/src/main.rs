//! The binary `wattle`: see [`wattle::run`].

fn main() -> std::process::ExitCode {
    // Mesa's device selection layer writes to stderr where there is no display. wattle chooses devices itself.
    // SAFETY: nothing has been started yet, so no other thread reads the environment.
    unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    wattle::run(std::env::args_os())
}

defmodule Snakepit.SharedMemory.MixProject do
  use Mix.Project

  @version "0.1.0"
  @source_url "https://github.com/nshkrdotcom/snakepit"

  def project do
    [
      app: :snakepit_shared_memory,
      version: @version,
      elixir: "~> 1.14",
      description: "Shared memory between the BEAM and Python or Rust processes, without a copy",
      source_url: @source_url,
      package: package(),
      deps: deps(),
      aliases: ["compile.snakepit_nif": &compile_nif/1],
      compilers: [:snakepit_nif] ++ Mix.compilers(),
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod
    ]
  end

  def application do
    [
      mod: {Snakepit.SharedMemory.Application, []},
      # Where :telemetry is there it starts before us, for events begin with our start.
      extra_applications: [:logger, :crypto, telemetry: :optional]
    ]
  end

  defp elixirc_paths(:test), do: ["lib", "test/support"]
  defp elixirc_paths(_env), do: ["lib"]

  # Nothing outside OTP is needed. Where Hex is there, an application that has :telemetry is told
  # which version we speak to; where it is not, the events are no-ops.
  defp deps do
    if Code.ensure_loaded?(Hex) do
      [{:telemetry, "~> 1.0", optional: true}]
    else
      []
    end
  end

  # All workspace members go along: cargo refuses a workspace with a member missing.
  defp package do
    [
      name: "snakepit_shared_memory",
      licenses: ["MIT", "Apache-2.0"],
      links: %{"GitHub" => @source_url},
      files:
        ~w(lib native docs examples/config Cargo.toml Cargo.lock clippy.toml rustfmt.toml mix.exs .formatter.exs
           README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE),
      exclude_patterns: [~r{/target/}, ~r{__pycache__}, ~r{\.so$}, ~r{\.(venv|pytest_cache)}]
    ]
  end

  # -- the NIF library -------------------------------------------------------------------------
  # A Mix task of our own under lib/ would not be found on a clean build, for it would have to be
  # compiled first. Hence an alias.

  @crate "snakepit-shm-nif"
  @library "snakepit_shm_nif"

  defp compile_nif(_args) do
    root = File.cwd!()
    target = System.get_env("CARGO_TARGET_DIR") || Path.join(root, "target")
    installed = Path.join([root, "priv", "native", @library <> ".so"])

    unless File.exists?(installed) do
      Mix.shell().info("Building the NIF library with cargo (a minute, once)")
    end

    cargo_build!(root, target)
    built = Path.join([target, "release", library_file()])
    result = install!(built, installed)

    # priv/ may be new, and Mix links it into _build only when it lays out the build.
    Mix.Project.build_structure()
    {result, []}
  end

  defp cargo_build!(root, target) do
    cargo =
      System.find_executable("cargo") ||
        Mix.raise("""
        cargo was not found, and the NIF library of :snakepit_shared_memory is built from source.
        Install Rust (https://rustup.rs) and make sure that `cargo` is on the PATH.
        """)

    args = ~w(build --release --quiet --package #{@crate} --target-dir) ++ [target]
    {_, status} = System.cmd(cargo, args, cd: root, into: IO.stream(), stderr_to_stdout: true)
    if status != 0, do: Mix.raise("cargo build of #{@crate} failed with exit status #{status}")
  end

  defp library_file do
    case :os.type() do
      {:unix, :darwin} -> "lib#{@library}.dylib"
      _ -> "lib#{@library}.so"
    end
  end

  # Never write into a library that a running VM has mapped: the new one comes in by a rename, and
  # the old file lives on for those who use it.
  defp install!(built, installed) do
    if same?(built, installed) do
      :noop
    else
      File.mkdir_p!(Path.dirname(installed))
      fresh = "#{installed}.#{System.pid()}"
      File.cp!(built, fresh)
      File.rename!(fresh, installed)
      :ok
    end
  end

  defp same?(one, other) do
    with {:ok, a} <- File.read(one), {:ok, b} <- File.read(other), do: a == b, else: (_ -> false)
  end
end

defmodule Workers.MixProject do
  use Mix.Project

  def project do
    [
      app: :workers,
      version: "0.1.0",
      elixir: "~> 1.14",
      elixirc_paths: ["lib" | shared()],
      start_permanent: false,
      deps: [{:snakepit_shared_memory, path: "../.."}]
    ]
  end

  def application, do: [mod: {Workers.Application, []}, extra_applications: [:logger]]

  # JSON and tables as the demo has them: an application of yours uses Jason, or `:json` of OTP 27.
  defp shared,
    do: for(file <- ~w(json table leftovers), do: Path.expand("../demo/#{file}.ex", __DIR__))
end

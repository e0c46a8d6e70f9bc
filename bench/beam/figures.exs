defmodule Bench.Figures do
  @moduledoc false
  # Collects figures and hands them on as bench/README.md says.

  def start, do: Agent.start_link(fn -> [] end, name: __MODULE__)

  @doc "Adds what `samples`, each `{ours, yardstick}` in nanoseconds, come to."
  def add(id, name, size, samples, yardstick) do
    {ours, yard} = Enum.unzip(samples)
    {ours, yard} = {median(ours), median(yard)}
    ratio = samples |> Enum.map(fn {ours, yard} -> ours / yard end) |> median()
    texts = Enum.map([ours, yard], &:erlang.float_to_binary(&1, decimals: 1))
    [ours_text, yard_text] = texts

    IO.puts(
      "#{name}, #{size} B: ours #{ours_text} ns, #{yardstick} #{yard_text} ns, ratio #{short(ratio)}"
    )

    figure = [
      {"id", "beam/" <> id},
      {"name", "Elixir " <> name},
      {"size", size},
      {"ours", ours},
      {"unit", "ns"},
      {"yardstick", [{"name", yardstick}, {"value", yard}]},
      {"ratio", ratio}
    ]

    Agent.update(__MODULE__, &[figure | &1])
  end

  @doc "Adds two figures that were measured, and their ratio."
  def put(id, name, size, {ours, unit}, {yardstick, yard}) do
    ratio = ours / yard
    IO.puts("#{name}: #{short(ours)} #{unit}, #{yardstick} #{short(yard)}, ratio #{short(ratio)}")

    figure = [
      {"id", "beam/" <> id},
      {"name", "Elixir " <> name},
      {"size", size},
      {"ours", ours * 1.0},
      {"unit", unit},
      {"yardstick", [{"name", yardstick}, {"value", yard * 1.0}]},
      {"ratio", ratio}
    ]

    Agent.update(__MODULE__, &[figure | &1])
  end

  @doc "Writes them, as a part of the report, where bench/run.sh looks for them, if it was that."
  def save(part) do
    figures = Agent.get(__MODULE__, &Enum.reverse/1)

    if parts = System.get_env("SNAKEPIT_BENCH_PARTS") do
      json = ["[", Enum.intersperse(Enum.map(figures, &object/1), ",\n"), "]\n"]
      File.write!(Path.join(parts, "#{part}.json"), json)
    end
  end

  def median(values) do
    sorted = Enum.sort(values)
    middle = div(length(sorted), 2)

    if rem(length(sorted), 2) == 1,
      do: Enum.at(sorted, middle) * 1.0,
      else: (Enum.at(sorted, middle - 1) + Enum.at(sorted, middle)) / 2
  end

  defp short(number), do: :io_lib.format("~.3g", [number * 1.0])

  # OTP 25 has no JSON; figures need objects, numbers and plain ASCII strings only.
  defp object(pairs) do
    [
      "{",
      Enum.intersperse(
        Enum.map(pairs, fn {key, value} -> [?", key, "\": ", json(value)] end),
        ", "
      ),
      "}"
    ]
  end

  defp json(value) when is_list(value), do: object(value)
  defp json(value) when is_integer(value), do: Integer.to_string(value)
  defp json(value) when is_float(value), do: Float.to_string(value)
  defp json(value) when is_binary(value), do: [?", value, ?"]
end

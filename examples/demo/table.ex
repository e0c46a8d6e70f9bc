defmodule Demo.Table do
  @moduledoc "Prints what the demo found: tables with aligned columns, sizes and times a person reads at a glance."

  @doc "A table: the first column to the left, the others to the right."
  @spec print([String.t()], [[String.t()]]) :: :ok
  def print(headers, rows) do
    widths =
      [headers | rows]
      |> Enum.zip_with(fn column -> column |> Enum.map(&String.length/1) |> Enum.max() end)

    rule = Enum.map(widths, &String.duplicate("-", &1))

    for row <- [headers, rule | rows] do
      [first | others] = Enum.zip(row, widths)
      cells = [left(first) | Enum.map(others, &right/1)]
      IO.puts(["  ", Enum.intersperse(cells, "  ")])
    end

    :ok
  end

  @doc ~S'"1 B", "54 kB", "100 MB": decimal units, three digits at most.'
  @spec bytes(non_neg_integer()) :: String.t()
  def bytes(n) when n < 1_000, do: "#{n} B"
  def bytes(n) when n < 1_000_000, do: "#{short(n / 1_000)} kB"
  def bytes(n) when n < 1_000_000_000, do: "#{short(n / 1_000_000)} MB"
  def bytes(n), do: "#{short(n / 1_000_000_000)} GB"

  @doc ~S'"850 ns", "12.3 µs", "7.91 ms", "1.20 s".'
  @spec time(number()) :: String.t()
  def time(ns) when ns < 1_000, do: "#{round(ns)} ns"
  def time(ns) when ns < 1_000_000, do: "#{short(ns / 1_000)} µs"
  def time(ns) when ns < 1_000_000_000, do: "#{short(ns / 1_000_000)} ms"
  def time(ns), do: "#{short(ns / 1_000_000_000)} s"

  @doc "The value below which the given share (0.0 to 1.0) of a non-empty list of numbers lies."
  @spec percentile([number()], float()) :: number()
  def percentile([_ | _] = values, share) do
    sorted = Enum.sort(values)
    Enum.at(sorted, min(length(sorted) - 1, trunc(share * length(sorted))))
  end

  defp short(x) when x >= 100, do: Integer.to_string(round(x))
  defp short(x) when x >= 10, do: trim(:erlang.float_to_binary(x / 1, decimals: 1))
  defp short(x), do: trim(:erlang.float_to_binary(x / 1, decimals: 2))

  defp trim(digits), do: digits |> String.trim_trailing("0") |> String.trim_trailing(".")

  defp left({text, width}), do: String.pad_trailing(text, width)
  defp right({text, width}), do: String.pad_leading(text, width)
end

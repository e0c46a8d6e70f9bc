defmodule Demo.Histogram do
  @moduledoc """
  How often each of 256 equal steps between the smallest and the largest value occurs: for files that are no picture.

  Computed in double precision with the same operations in the same order as `worker.py`, so the counts are equal, not
  nearly equal.
  """

  @bins 256

  @doc "Whether the values of this dtype can be counted here; any other data is counted as bytes."
  @spec countable?(String.t()) :: boolean()
  def countable?(dtype), do: kind(dtype) != nil

  @doc """
  The bin of each value as one byte each, the 256 counts, and how many values are infinite or not a number (those are
  in no bin, and drawn as 0).
  """
  @spec of(binary(), String.t()) :: {binary(), [non_neg_integer()], non_neg_integer()}
  def of(data, dtype) do
    {kind, bits} = kind(dtype)
    {low, high, strange} = range(data, kind, bits)
    span = high / 2 - low / 2
    scale = if span < 1.0e-300, do: 0.0, else: @bins / span
    bins = bins(data, kind, bits, low / 2, scale)
    {bins, counts(bins, strange), strange}
  end

  defp range(data, kind, bits) do
    fold(data, kind, bits, {nil, nil, 0}, fn
      nil, {low, high, strange} -> {low, high, strange + 1}
      x, {nil, nil, strange} -> {x, x, strange}
      x, {low, high, strange} -> {min(x, low), max(x, high), strange}
    end)
    |> case do
      {nil, nil, strange} -> {0.0, 0.0, strange}
      found -> found
    end
  end

  defp bins(data, kind, bits, half_low, scale) do
    fold(data, kind, bits, <<>>, fn
      nil, done -> <<done::binary, 0>>
      x, done -> <<done::binary, min(@bins - 1, trunc((x / 2 - half_low) * scale))>>
    end)
  end

  defp counts(bins, strange) do
    counters = :counters.new(@bins, [])
    for <<bin <- bins>>, do: :counters.add(counters, bin + 1, 1)
    # What is no number was drawn in bin 0, but is not counted there.
    :counters.sub(counters, 1, strange)
    for bin <- 1..@bins, do: :counters.get(counters, bin)
  end

  # --- numpy's dtype strings ---

  defp kind(<<order, kind, size::binary>>) do
    bits = String.to_integer(size) * 8
    little = order in [?<, ?|, ?=]

    case {kind, little} do
      {?b, _} when bits == 8 -> {:unsigned_little, 8}
      {?u, true} when bits <= 64 -> {:unsigned_little, bits}
      {?u, false} when bits <= 64 -> {:unsigned_big, bits}
      {?i, true} when bits <= 64 -> {:signed_little, bits}
      {?i, false} when bits <= 64 -> {:signed_big, bits}
      {?f, true} when bits in [16, 32, 64] -> {:float_little, bits}
      {?f, false} when bits in [16, 32, 64] -> {:float_big, bits}
      _ -> nil
    end
  end

  # A float pattern does not match what is infinite or not a number: `fun` is given nil for those.
  defp fold(<<>>, _kind, _bits, acc, _fun), do: acc

  defp fold(data, kind, bits, acc, fun) do
    {value, rest} = next(kind, bits, data)
    fold(rest, kind, bits, fun.(value, acc), fun)
  end

  defp next(:unsigned_little, bits, data) do
    <<x::unsigned-little-size(bits), rest::binary>> = data
    {:erlang.float(x), rest}
  end

  defp next(:unsigned_big, bits, data) do
    <<x::unsigned-big-size(bits), rest::binary>> = data
    {:erlang.float(x), rest}
  end

  defp next(:signed_little, bits, data) do
    <<x::signed-little-size(bits), rest::binary>> = data
    {:erlang.float(x), rest}
  end

  defp next(:signed_big, bits, data) do
    <<x::signed-big-size(bits), rest::binary>> = data
    {:erlang.float(x), rest}
  end

  defp next(:float_little, bits, data) do
    case data do
      <<x::float-little-size(bits), rest::binary>> -> {x, rest}
      <<_::size(bits), rest::binary>> -> {nil, rest}
    end
  end

  defp next(:float_big, bits, data) do
    case data do
      <<x::float-big-size(bits), rest::binary>> -> {x, rest}
      <<_::size(bits), rest::binary>> -> {nil, rest}
    end
  end
end

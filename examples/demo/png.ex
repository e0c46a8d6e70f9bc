defmodule Demo.PNG do
  @moduledoc """
  Reads and writes PNG pictures with `:zlib` alone: 8 bits a channel, gray, gray and alpha, RGB or RGBA, not interlaced.

  A picture is `%Demo.PNG{width:, height:, channels:, pixels:}`; `pixels` is `height * width * channels` bytes, row by
  row from the top, just as numpy lays out an array of shape `[height, width, channels]`.
  """

  import Bitwise

  @enforce_keys [:width, :height, :channels, :pixels]
  defstruct @enforce_keys

  @type t :: %__MODULE__{
          width: pos_integer(),
          height: pos_integer(),
          channels: 1..4,
          pixels: binary()
        }

  @signature <<0x89, "PNG\r\n", 0x1A, "\n">>
  # The colour type of the header, and how many channels it means.
  @channels %{0 => 1, 2 => 3, 4 => 2, 6 => 4}
  @colour_type Map.new(@channels, fn {type, channels} -> {channels, type} end)

  @doc "Whether these are the first bytes of a PNG."
  @spec png?(binary()) :: boolean()
  def png?(bytes), do: match?(<<@signature, _::binary>>, bytes)

  @doc "The picture in `bytes`, or a sentence that says what it is about them that cannot be read."
  @spec decode(binary()) :: {:ok, t()} | {:error, String.t()}
  def decode(<<@signature, rest::binary>>) do
    with {:ok, [{"IHDR", header} | chunks]} <- chunks(rest, []),
         {:ok, width, height, channels} <- header(header),
         {:ok, rows} <-
           inflate(for({"IDAT", data} <- chunks, do: data), height * (width * channels + 1)) do
      unfilter(rows, width, height, channels)
    else
      {:ok, _} -> {:error, "a PNG that does not begin with its header"}
      {:error, reason} -> {:error, reason}
    end
  end

  def decode(_bytes), do: {:error, "not a PNG: the signature is missing"}

  @doc "The bytes of a PNG file with this picture."
  @spec encode(t()) :: iodata()
  def encode(%__MODULE__{width: width, height: height, channels: channels, pixels: pixels})
      when is_integer(width) and is_integer(height) and is_map_key(@colour_type, channels) and
             byte_size(pixels) == width * height * channels do
    stride = width * channels
    rows = for <<row::binary-size(stride) <- pixels>>, do: [0, row]

    [
      @signature,
      chunk("IHDR", <<width::32, height::32, 8, @colour_type[channels], 0, 0, 0>>),
      chunk("IDAT", :zlib.compress(rows)),
      chunk("IEND", "")
    ]
  end

  @doc "One chunk of a PNG file: its length, type, data and checksum."
  @spec chunk(binary(), binary()) :: iodata()
  def chunk(type, data),
    do: [<<byte_size(data)::32>>, type, data, <<:erlang.crc32([type, data])::32>>]

  # --- the file ---

  defp chunks(
         <<length::32, type::binary-4, data::binary-size(length), crc::32, rest::binary>>,
         found
       ) do
    cond do
      :erlang.crc32([type, data]) != crc ->
        {:error, "a damaged PNG: the checksum of chunk #{inspect(type)} is wrong"}

      type == "IEND" ->
        {:ok, Enum.reverse(found)}

      true ->
        chunks(rest, [{type, data} | found])
    end
  end

  defp chunks(_rest, _found), do: {:error, "a PNG that ends too early"}

  defp header(<<width::32, height::32, depth, colour, 0, 0, interlace>>)
       when width > 0 and height > 0 do
    cond do
      colour == 3 -> {:error, "a PNG with a palette; only gray, RGB and RGBA are read"}
      depth != 8 -> {:error, "a PNG with #{depth} bits a channel; only 8 are read"}
      interlace != 0 -> {:error, "an interlaced PNG; only plain ones are read"}
      is_map_key(@channels, colour) -> {:ok, width, height, @channels[colour]}
      true -> {:error, "a PNG of unknown colour type #{colour}"}
    end
  end

  defp header(_other), do: {:error, "a PNG with a header that makes no sense"}

  # `expected` bounds what a hostile file can make us inflate.
  defp inflate(parts, expected) do
    z = :zlib.open()

    try do
      :ok = :zlib.inflateInit(z)
      inflate_loop(z, :zlib.safeInflate(z, parts), [], 0, expected)
    rescue
      _bad_data in ErlangError -> {:error, "a damaged PNG: its compressed data cannot be read"}
    after
      :zlib.close(z)
    end
  end

  defp inflate_loop(z, {state, output}, got, size, expected) do
    size = size + IO.iodata_length(output)
    got = [got, output]

    cond do
      size > expected -> {:error, "a damaged PNG: more pixels than its header says"}
      state == :continue -> inflate_loop(z, :zlib.safeInflate(z, []), got, size, expected)
      size < expected -> {:error, "a damaged PNG: fewer pixels than its header says"}
      true -> {:ok, IO.iodata_to_binary(got)}
    end
  end

  # --- the rows: each was stored as its difference from what is left of it and above it ---

  defp unfilter(rows, width, height, channels) do
    stride = width * channels
    zeros = List.duplicate(0, channels)

    {_last, pixels} =
      for <<filter, row::binary-size(stride) <- rows>>, reduce: {:binary.copy(<<0>>, stride), []} do
        {above, done} ->
          row = unfilter_row(filter, row, above, zeros)
          {row, [done, row]}
      end

    {:ok,
     %__MODULE__{
       width: width,
       height: height,
       channels: channels,
       pixels: IO.iodata_to_binary(pixels)
     }}
  catch
    {:filter, type} -> {:error, "a damaged PNG: unknown filter type #{type}"}
  end

  defp unfilter_row(0, row, _above, _zeros), do: row
  defp unfilter_row(1, row, _above, zeros), do: sub(row, zeros, <<>>)
  defp unfilter_row(2, row, above, _zeros), do: up(row, above, <<>>)
  defp unfilter_row(3, row, above, zeros), do: average(row, above, zeros, <<>>)
  defp unfilter_row(4, row, above, zeros), do: paeth(row, above, zeros, zeros, <<>>)
  defp unfilter_row(type, _row, _above, _zeros), do: throw({:filter, type})

  # `[a | as]` is the pixel to the left, `[c | cs]` the one above that: queues, one entry a channel.
  defp sub(<<x, xs::binary>>, [a | as], acc) do
    value = x + a &&& 255
    sub(xs, as ++ [value], <<acc::binary, value>>)
  end

  defp sub(<<>>, _left, acc), do: acc

  defp up(<<x, xs::binary>>, <<b, bs::binary>>, acc),
    do: up(xs, bs, <<acc::binary, x + b &&& 255>>)

  defp up(<<>>, <<>>, acc), do: acc

  defp average(<<x, xs::binary>>, <<b, bs::binary>>, [a | as], acc) do
    value = x + ((a + b) >>> 1) &&& 255
    average(xs, bs, as ++ [value], <<acc::binary, value>>)
  end

  defp average(<<>>, <<>>, _left, acc), do: acc

  defp paeth(<<x, xs::binary>>, <<b, bs::binary>>, [a | as], [c | cs], acc) do
    value = x + nearest(a, b, c) &&& 255
    paeth(xs, bs, as ++ [value], cs ++ [b], <<acc::binary, value>>)
  end

  defp paeth(<<>>, <<>>, _left, _above_left, acc), do: acc

  # Whichever of left, above and above-left is nearest to left + above - above-left; ties in that order.
  defp nearest(a, b, c) do
    to_a = abs(b - c)
    to_b = abs(a - c)
    to_c = abs(a + b - 2 * c)

    cond do
      to_a <= to_b and to_a <= to_c -> a
      to_b <= to_c -> b
      true -> c
    end
  end
end

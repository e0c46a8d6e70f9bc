defmodule Demo.Edges do
  @moduledoc """
  The edges of a picture, in whole numbers only: what `worker.py` computes with numpy, written a second time and
  another way, so that the demo can compare every pixel.

  Gray is `(77 r + 150 g + 29 b) >> 8`; an edge is the Sobel operator's `|gx| + |gy|`, at most 255; the border is 0.
  """

  import Bitwise

  alias Demo.PNG

  @doc "The edges as one byte a pixel, row by row."
  @spec of(PNG.t()) :: binary()
  def of(%PNG{width: width, height: height} = picture) when width >= 3 and height >= 3 do
    rows = for <<row::binary-size(width) <- gray(picture)>>, do: row
    border = :binary.copy(<<0>>, width)

    inner =
      rows |> Enum.chunk_every(3, 1, :discard) |> Enum.map(fn [a, b, c] -> edge_row(a, b, c) end)

    IO.iodata_to_binary([border, inner, border])
  end

  def of(%PNG{width: width, height: height}), do: :binary.copy(<<0>>, width * height)

  defp gray(%PNG{channels: 1, pixels: pixels}), do: pixels

  defp gray(%PNG{channels: 2, pixels: pixels}),
    do: for(<<y, _a <- pixels>>, into: <<>>, do: <<y>>)

  defp gray(%PNG{channels: 3, pixels: pixels}),
    do: for(<<r, g, b <- pixels>>, into: <<>>, do: <<luma(r, g, b)>>)

  defp gray(%PNG{channels: 4, pixels: pixels}),
    do: for(<<r, g, b, _a <- pixels>>, into: <<>>, do: <<luma(r, g, b)>>)

  defp luma(r, g, b), do: (77 * r + 150 * g + 29 * b) >>> 8

  defp edge_row(<<a0, a1, as::binary>>, <<b0, b1, bs::binary>>, <<c0, c1, cs::binary>>),
    do: slide(as, bs, cs, {a0, b0, c0}, {a1, b1, c1}, <<0>>)

  # A window of three columns slides along three rows; `a` is the upper one.
  defp slide(
         <<a2, as::binary>>,
         <<b2, bs::binary>>,
         <<c2, cs::binary>>,
         {a0, b0, c0},
         {a1, b1, c1},
         done
       ) do
    gx = a2 + 2 * b2 + c2 - a0 - 2 * b0 - c0
    gy = c0 + 2 * c1 + c2 - a0 - 2 * a1 - a2
    slide(as, bs, cs, {a1, b1, c1}, {a2, b2, c2}, <<done::binary, min(255, abs(gx) + abs(gy))>>)
  end

  defp slide(<<>>, <<>>, <<>>, _left, _middle, done), do: <<done::binary, 0>>
end

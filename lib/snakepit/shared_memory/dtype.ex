defmodule Snakepit.SharedMemory.Dtype do
  @moduledoc """
  Element types, in numpy's array-protocol notation.

  A handle always carries the string that numpy understands (`"<f4"`). From Elixir the notation of
  Nx may be used as well: `:f32` or `{:f, 32}`.

  | Elixir | handle |
  |---|---|
  | `:u8` `:u16` `:u32` `:u64` | `"\\|u1"` `"<u2"` `"<u4"` `"<u8"` |
  | `:s8` `:s16` `:s32` `:s64` | `"\\|i1"` `"<i2"` `"<i4"` `"<i8"` |
  | `:f16` `:f32` `:f64` | `"<f2"` `"<f4"` `"<f8"` |
  | `:c64` `:c128` | `"<c8"` `"<c16"` |
  | `:bool` | `"\\|b1"` |

  Values are little-endian; a string such as `">f4"` says otherwise.
  """

  @type t :: String.t() | atom() | {:u | :s | :f | :c, pos_integer()}

  @widths %{u: [8, 16, 32, 64], s: [8, 16, 32, 64], f: [16, 32, 64], c: [64, 128]}
  @letters %{u: "u", s: "i", f: "f", c: "c"}

  @strings for {kind, widths} <- @widths,
               bits <- widths,
               into: %{},
               do:
                 {{kind, bits},
                  "#{if bits == 8, do: "|", else: "<"}#{@letters[kind]}#{div(bits, 8)}"}

  @names for {{kind, bits}, string} <- @strings,
             into: %{bool: "|b1"},
             do: {:"#{kind}#{bits}", string}

  @doc """
  The array-protocol string of an element type.

      iex> Snakepit.SharedMemory.Dtype.to_string({:f, 32})
      {:ok, "<f4"}
      iex> Snakepit.SharedMemory.Dtype.to_string(:u8)
      {:ok, "|u1"}
      iex> Snakepit.SharedMemory.Dtype.to_string(">i2")
      {:ok, ">i2"}
      iex> Snakepit.SharedMemory.Dtype.to_string(:f33)
      :error
  """
  @spec to_string(term()) :: {:ok, String.t()} | :error
  def to_string(dtype) when is_binary(dtype), do: {:ok, dtype}
  def to_string({kind, bits}), do: Map.fetch(@strings, {kind, bits})
  def to_string(name), do: Map.fetch(@names, name)

  @doc """
  Bytes of one element.

      iex> Snakepit.SharedMemory.Dtype.item_size("<f4")
      {:ok, 4}
      iex> Snakepit.SharedMemory.Dtype.item_size("float")
      :error
  """
  @spec item_size(String.t()) :: {:ok, pos_integer()} | :error
  def item_size(<<order, letter, digits::binary>>)
      when order in ~c"<>|=" and letter in ~c"biufcmMVSU" do
    case Integer.parse(digits) do
      {size, ""} when size > 0 -> {:ok, if(letter == ?U, do: size * 4, else: size)}
      {8, "[" <> _unit} when letter in ~c"mM" -> {:ok, 8}
      _ -> :error
    end
  end

  def item_size(_dtype), do: :error
end

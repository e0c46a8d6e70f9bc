defmodule Demo.NPY do
  @moduledoc """
  Reads numpy's `.npy` files: versions 1 to 3, row-major, any dtype that is not an object or a structure.
  """

  @enforce_keys [:dtype, :shape, :data]
  defstruct @enforce_keys

  @type t :: %__MODULE__{dtype: String.t(), shape: [non_neg_integer()], data: binary()}

  @signature <<0x93, "NUMPY">>

  @doc "Whether these are the first bytes of a `.npy` file."
  @spec npy?(binary()) :: boolean()
  def npy?(bytes), do: match?(<<@signature, _::binary>>, bytes)

  @doc "The array in `bytes`: its dtype string, its shape and its bytes, or a sentence about why not."
  @spec decode(binary()) :: {:ok, t()} | {:error, String.t()}
  def decode(
        <<@signature, 1, _minor, length::16-little, header::binary-size(length), data::binary>>
      ),
      do: decode(header, data)

  def decode(
        <<@signature, major, _minor, length::32-little, header::binary-size(length),
          data::binary>>
      )
      when major in [2, 3],
      do: decode(header, data)

  def decode(_bytes), do: {:error, "not a .npy file of version 1 to 3"}

  # The header is a Python dict literal that numpy always writes in this form.
  defp decode(header, data) do
    with [_, dtype] <- Regex.run(~r/'descr':\s*'([^']*)'/, header),
         [_, order] <- Regex.run(~r/'fortran_order':\s*(True|False)/, header),
         [_, dims] <- Regex.run(~r/'shape':\s*\(([\d,\sL]*)\)/, header) do
      shape = for [dim] <- Regex.scan(~r/\d+/, dims), do: String.to_integer(dim)
      check(dtype, order, shape, data)
    else
      nil -> {:error, "a .npy file with a structured dtype or a header that makes no sense"}
    end
  end

  defp check(_dtype, "True", [_, _ | _], _data),
    do: {:error, "a .npy file in column-major order; save it with order='C'"}

  defp check(dtype, _order, shape, data) do
    case Regex.run(~r/\A[<>|=]([bifcu?])(\d+)\z/, dtype) do
      [_, _kind, size] ->
        wanted = Enum.product(shape) * String.to_integer(size)

        if byte_size(data) == wanted,
          do: {:ok, %__MODULE__{dtype: dtype, shape: shape, data: data}},
          else:
            {:error,
             "a .npy file of #{byte_size(data)} data bytes where its header says #{wanted}"}

      nil ->
        {:error,
         "a .npy file of dtype #{dtype}; only booleans, integers, floats and complex numbers are read"}
    end
  end
end

# What this library uses of Nx, where Nx is not to be had: its public functions of these names, and the
# name of its struct. A tensor here is a binary, as on Nx's own backend.
unless Code.ensure_loaded?(Nx) do
  defmodule Nx.Tensor do
    defstruct [:data, :type, :shape]
  end

  defmodule Nx do
    def type(%Nx.Tensor{type: type}), do: type
    def shape(%Nx.Tensor{shape: shape}), do: shape
    def to_binary(%Nx.Tensor{data: data}), do: data

    def from_binary(binary, {_kind, bits} = type, []) do
      0 = rem(byte_size(binary) * 8, bits)
      %Nx.Tensor{data: binary, type: type, shape: {div(byte_size(binary) * 8, bits)}}
    end

    def reshape(%Nx.Tensor{shape: old} = tensor, shape) do
      true = product(old) == product(shape)
      %{tensor | shape: shape}
    end

    defp product(shape), do: Tuple.product(shape)
  end
end

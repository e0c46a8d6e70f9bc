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

    # Axes turned round: each element's place in the one is counted with the last index fastest, in the other
    # with the first.
    def transpose(%Nx.Tensor{shape: old, type: {_kind, bits}, data: data} = tensor) do
      sizes = Tuple.to_list(old)
      elements = for <<element::bitstring-size(bits) <- data>>, do: element
      elements = List.to_tuple(elements)
      strides = sizes |> Enum.reverse() |> Enum.scan(1, &*/2)
      strides = Enum.reverse([1 | Enum.drop(strides, -1)])

      turned =
        sizes
        |> Enum.zip(strides)
        |> Enum.reverse()
        |> Enum.reduce([0], fn {size, stride}, places ->
          for place <- places, index <- 0..(size - 1)//1, do: place + index * stride
        end)

      data = for place <- turned, into: <<>>, do: elem(elements, place)
      %{tensor | data: data, shape: sizes |> Enum.reverse() |> List.to_tuple()}
    end

    defp product(shape), do: Tuple.product(shape)
  end
end
